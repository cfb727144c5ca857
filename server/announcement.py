"""What a person sees while the server starts, and once it is ready."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from multiflora.engine.request import EngineInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """The facts that a new user needs."""

    url: str
    base: str
    adapters: Sequence[str]
    data_dir: Path
    has_chat_template: bool
    needs_key: bool = False

    def text(self, info: EngineInfo) -> str:
        """Everything to print when the engine is ready."""
        adapters = ", ".join(self.adapters) or "none; add one with --adapter NAME=PATH"
        return "\n".join(
            [
                f"multiflora is ready at {self.url} (loaded in {info.load_seconds:.1f} s)",
                f"  base      {self.base} ({info.family}, {info.quantization})",
                f"  adapters  {adapters}",
                f"  device    {info.device}, kernels {info.kernels}, dtype {info.dtype}",
                f"  context   {info.max_model_len} tokens",
                f"  data      {self.data_dir}",
                f"  console   {self.url}/console",
                "",
                "try it:",
                "",
                self._curl(),
                "",
                self._python(),
            ]
        )

    def _curl(self) -> str:
        model = self.adapters[0] if self.adapters else self.base
        path, question = self._question()
        body = json.dumps({"model": model, **question}, ensure_ascii=False)
        quoted = body.replace("'", "'\\''")
        key = '  -H "authorization: Bearer $MULTIFLORA_API_KEY" \\\n' if self.needs_key else ""
        return (
            f"curl {self.url}/v1/{path} \\\n{key}"
            f"  -H 'content-type: application/json' \\\n  -d '{quoted}'"
        )

    def _python(self) -> str:
        models = list(self.adapters[:2]) or [self.base]
        path, question = self._question()
        call = f"client.{path.replace('/', '.')}.create"
        fields = ", ".join(f"{name}={value!r}" for name, value in question.items())
        shown = "message.content" if self.has_chat_template else "text"
        key = 'os.environ["MULTIFLORA_API_KEY"]' if self.needs_key else '"none"'
        return "\n".join(
            [
                *(["import os"] if self.needs_key else []),
                "from openai import OpenAI",
                f'client = OpenAI(base_url="{self.url}/v1", api_key={key})',
                f"for model in {models!r}:",
                f"    answer = {call}(model=model, {fields})",
                f"    print(model, answer.choices[0].{shown})",
            ]
        )

    def _question(self) -> tuple[str, dict[str, object]]:
        if self.has_chat_template:
            messages = [{"role": "user", "content": "Is 4821 even or odd?"}]
            return "chat/completions", {"messages": messages, "max_tokens": 64}
        return "completions", {"prompt": "Once upon a time", "max_tokens": 64}


@contextmanager
def loading_progress(first: str = "starting the engine") -> Iterator[Callable[[str, float], None]]:
    """Show what long work reports, ``first`` before it does; on a terminal only, and on stderr."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    # Elsewhere even an empty display ends in a blank line.
    is_hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=is_hidden) as progress:
        task = progress.add_task(first, total=1.0)

        def show(stage: str, fraction: float) -> None:
            progress.update(task, description=stage, completed=fraction)

        yield show
