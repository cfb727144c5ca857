"""A run to be shown, and a sink's process that does what a test says."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from multiflora.engine.training.jobs.tracking.message import TrackedRun
from multiflora.engine.training.jobs.tracking.sink_process import SinkProcess


@pytest.fixture
def run(tmp_path: Path) -> TrackedRun:
    return TrackedRun(
        sink="tensorboard",
        id="ftjob-1",
        name="fancy",
        folder=str(tmp_path / "sink"),
        config={"lora": {"rank": 8}},
        tags=("ships",),
    )


@pytest.fixture
def failures() -> list[str]:
    return []


@pytest.fixture
def start(run: TrackedRun, failures: list[str]) -> Callable[..., SinkProcess]:
    """``start("a program", patience_seconds=1)``."""

    def start(program: str, **options: Any) -> SinkProcess:
        return SinkProcess(
            run, on_failure=failures.append, program=("-S", "-c", program), **options
        )

    assert sys.executable
    return start
