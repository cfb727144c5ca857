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

from multiflora.engine.training.data.run_doctor import diagnose
from multiflora.engine.training.job import EvaluationMetrics, JobEnded, JobStarted, StepMetrics

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
        # The first step that is seen carries the warm-up: speed is measured from its end.
        self._first: StepMetrics | None = None
        self._validation = ""
        self._history: list[dict[str, float]] = []

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
        self._first = None
        self._progress.update(self._task, total=event.num_steps, completed=event.step)
        if event.step:
            self._console.print(f"going on from the checkpoint after step {event.step}")

    def add(self, event: StepMetrics | EvaluationMetrics) -> None:
        self._history.append({"step": event.step, **event.metrics})
        if isinstance(event, EvaluationMetrics):
            loss = f"{event.metrics['eval_loss']:.4f}"
            self._validation = f", validation {loss}"
            self._console.print(f"step {event.step}: validation loss {loss}", highlight=False)
            return
        text = f"loss {event.metrics['loss']:.4f}{self._speed(event)}{self._validation}"
        self._progress.update(self._task, completed=event.step, description=text)
        text += self._time_left(event)
        every = max(1, self._num_steps // _LINES)
        if not self._console.is_terminal and (event.step % every == 0 or event.step == 1):
            self._console.print(f"step {event.step}/{self._num_steps}: {text}", highlight=False)

    def end(self, event: JobEnded) -> None:
        """What came of it, and what the losses say of the settings."""
        self._progress.stop()
        if event.reason == "stopped_early":
            self._print(f"stopped after step {event.step}: the validation loss falls no more")
        if event.best_step is not None:
            losses = [row["eval_loss"] for row in self._history if "eval_loss" in row]
            lowest = f", validation loss {min(losses):.4f}" if losses else ""
            self._print(f"the best step was {event.best_step}{lowest}")
        for finding in diagnose(self._history):
            self._print(f"  {finding.severity:<9} {finding.message}")

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)

    def _speed(self, event: StepMetrics) -> str:
        if self._first is None:
            self._first, self._since = event, time.monotonic()
            return ""
        num_tokens = event.metrics["num_tokens"] - self._first.metrics["num_tokens"]
        return f", {num_tokens / self._elapsed():.0f} tokens/s"

    def _time_left(self, event: StepMetrics) -> str:
        if self._first is None or event.step == self._first.step:
            return ""
        pace = self._elapsed() / (event.step - self._first.step)
        minutes, seconds = divmod(round(pace * (self._num_steps - event.step)), 60)
        return f", {minutes}:{seconds:02} left"

    def _elapsed(self) -> float:
        return max(time.monotonic() - self._since, 1e-9)
