"""A running job on a terminal: a bar with loss, speed and time left; plain lines elsewhere."""

import time
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from multiflora.engine.training.job import EvaluationMetrics, JobStarted, StepMetrics

_LINES: Final = 20


class TrainingProgress:
    """Shows events as they come, on ``console``."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=None)
        self._num_steps = 1
        self._since = time.monotonic()
        self._first_tokens: float | None = None
        self._validation = ""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def begin(self, event: JobStarted) -> None:
        self._num_steps = event.num_steps
        self._since = time.monotonic()
        self._progress.update(self._task, total=event.num_steps, completed=event.step)
        if event.step:
            self._console.print(f"going on from the checkpoint after step {event.step}")

    def add(self, event: StepMetrics | EvaluationMetrics) -> None:
        if isinstance(event, EvaluationMetrics):
            loss = f"{event.metrics['eval_loss']:.4f}"
            self._validation = f", validation {loss}"
            self._console.print(f"step {event.step}: validation loss {loss}", highlight=False)
            return
        text = f"loss {event.metrics['loss']:.4f}{self._speed(event)}{self._validation}"
        self._progress.update(self._task, completed=event.step, description=text)
        every = max(1, self._num_steps // _LINES)
        if not self._console.is_terminal and (event.step % every == 0 or event.step == 1):
            self._console.print(f"step {event.step}/{self._num_steps}: {text}", highlight=False)

    def _speed(self, event: StepMetrics) -> str:
        """Tokens a second since the first step that was seen, which carries the warm-up."""
        tokens = event.metrics["num_tokens"]
        if self._first_tokens is None:
            self._first_tokens, self._since = tokens, time.monotonic()
            return ""
        seconds = max(time.monotonic() - self._since, 1e-9)
        return f", {(tokens - self._first_tokens) / seconds:.0f} tokens/s"
