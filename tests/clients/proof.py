"""``make test-clients``: clients that others wrote, unmodified, against a real server.

Each has an environment of its own. The record goes to ``benchmarks/results`` and the table to
``docs/clients.md``; the exit status is 1 where anything failed.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from benchmarks.harness import save
from benchmarks.report.generate import main as report
from benchmarks.serving.server_process import running_server

from ..conftest import ADAPTERS, build_model, save_adapter, save_tokenizer
from ..tool_environment import ROOT
from .ask_lm_eval import Harness
from .reference import Reference
from .tool import PINS, python_of

_SCRIPTS: Final = {"langchain-openai": "ask_langchain", "litellm": "ask_litellm"}
_TOLERANCE: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Outcome:
    """One check of one client; no problem is a success."""

    client: str
    check: str
    problem: str
    figures: str = ""


def main() -> int:
    pythons = {tool: python_of(tool) for tool in (*_SCRIPTS, "lm-eval")}
    with tempfile.TemporaryDirectory() as name:
        outcomes = _outcomes(Path(name), pythons)
    record = {
        "clients": {tool: list(PINS[tool]) for tool in pythons},
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }
    path = save("clients", record)
    report()
    failed = [outcome for outcome in outcomes if outcome.problem]
    for outcome in failed:
        print(f"{outcome.client}: {outcome.check}: {outcome.problem}", file=sys.stderr)
    print(f"{len(outcomes) - len(failed)} of {len(outcomes)} checks passed; saved {path}")
    return 1 if failed else 0


def _outcomes(folder: Path, pythons: Mapping[str, Path]) -> list[Outcome]:
    model, adapters = _made(folder)
    keys = folder / "keys.jsonl"
    key = _key(keys)
    with running_server(
        *(str(model), "--served-model-name", "base", "--api-key-file", str(keys)),
        *("--lora-modules", *(f"{name}={path}" for name, path in adapters.items())),
        *("--device", "cpu", "--dtype", "float32", "--kv-cache-memory", "8MiB"),
    ) as server:
        url = server.url
        harness = Harness(
            python=pythons["lm-eval"], folder=folder, url=url, key=key, model_folder=model
        )
        return [
            *(
                outcome
                for tool, script in _SCRIPTS.items()
                for outcome in _asked(tool, script, pythons[tool], url, key)
            ),
            *_evaluated(harness, Reference(model, adapters)),
        ]


def _made(folder: Path) -> tuple[Path, dict[str, Path]]:
    """The tests' tiny llama and its adapters."""
    model = build_model("llama")
    model.save_pretrained(folder / "model")
    save_tokenizer(folder / "model")
    for seed, (name, settings) in enumerate(ADAPTERS.items()):
        save_adapter(model, folder / name, settings, seed)
    return folder / "model", {name: folder / name for name in ADAPTERS}


def _key(path: Path) -> str:
    command = [sys.executable, "-m", "multiflora.server.cli", "keys", "create", "clients"]
    command += ["--scopes", "inference", "--api-key-file", str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]


def _asked(tool: str, script: str, python: Path, url: str, key: str) -> Iterator[Outcome]:
    command = [python, "-m", f"tests.clients.{script}", url, key]
    ended = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    lines = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith('{"check"')]
    yield from (Outcome(tool, line["check"], line["problem"]) for line in lines)
    if ended.returncode or not lines:
        yield Outcome(tool, "all checks", ended.stderr[-1000:] or "nothing was checked")


def _evaluated(harness: Harness, reference: Reference) -> Iterator[Outcome]:
    try:
        for score in harness.scores(reference):
            figures = f"{score.score:.8f}, reference {score.expected:.8f}"
            problem = "" if score.difference <= _TOLERANCE else f"differs by {score.difference}"
            yield Outcome("lm-eval", f"{score.run}, {score.metric}", problem, figures)
    except RuntimeError as error:
        yield Outcome("lm-eval", "all tasks", str(error))


if __name__ == "__main__":
    sys.exit(main())
