"""The log of a running job: what the engine reports, gathered and written a few times a second."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..data.run_doctor import diagnose
from ..job import EvaluationMetrics, StepMetrics
from .job import Job, JobNote
from .job_census import Split
from .job_folder import JobFolder
from .job_registry import JobRegistry
from .tracking.tracker import Tracker

# A transaction waits for the disk; a small model takes hundreds of steps a second.
_FLUSH_SECONDS: Final = 0.5


class JobLog:
    """Knows how far and how fast the job is."""

    def __init__(self, jobs: JobRegistry, job: Job, folder: JobFolder, tracker: Tracker) -> None:
        self._jobs = jobs
        self._job_id = job.id
        self._folder = folder
        self._tracker = tracker
        self._notes: list[JobNote] = []
        self._rows: list[Mapping[str, Any]] = []
        self._flushed = time.monotonic()
        self._began: tuple[float, int] | None = None
        self._trained_tokens = job.trained_tokens
        self.step = job.step
        self.num_steps = job.num_steps
        self.best_step: int | None = None
        self.losses: dict[Split, float] = {}

    @property
    def estimated_finish(self) -> int | None:
        """A Unix time; None while it is unknown."""
        if self._began is None or self.num_steps is None:
            return None
        since, first = self._began
        if self.step <= first:
            return None
        pace = (time.monotonic() - since) / (self.step - first)
        return int(time.time() + pace * max(0, self.num_steps - self.step))

    def begin(self, *, step: int, num_steps: int, best_step: int | None) -> None:
        """Training goes on after ``step``."""
        self.step, self.num_steps, self.best_step = step, num_steps, best_step
        self._began = (time.monotonic(), step)

    def stand(self) -> None:
        """Training stands still: what was measured of its pace means nothing any more."""
        self._began = None

    async def add(self, event: StepMetrics | EvaluationMetrics) -> None:
        """Take in metrics; from time to time this waits for the disk."""
        named = _openai_names(event)
        row = {"step": event.step, **event.metrics}
        if isinstance(event, EvaluationMetrics):
            if event.is_best:
                self.best_step = event.step
            self.losses["validation"] = event.metrics["eval_loss"]
            text = f"Step {event.step}: validation loss={event.metrics['eval_loss']:.4f}"
        else:
            self._take_step(event)
            self.losses["train"] = event.metrics["loss"]
            of = "" if self.num_steps is None else f"/{self.num_steps}"
            text = f"Step {event.step}{of}: training loss={event.metrics['loss']:.4f}"
        data = {"step": event.step, "total_steps": self.num_steps, **named, **row}
        self._notes.append(JobNote(message=text, kind="metrics", data=data))
        self._rows.append(row)
        if time.monotonic() - self._flushed >= _FLUSH_SECONDS:
            await self.flush()

    def _take_step(self, event: StepMetrics) -> None:
        if self._began is None:
            self._began = (time.monotonic(), event.step)
        self.step = event.step
        tokens = event.metrics.get("num_tokens")
        if tokens is not None:
            self._trained_tokens = int(tokens)

    async def flush(self) -> None:
        """Write what was gathered; it is on the disk then."""
        notes, self._notes = self._notes, []
        rows, self._rows = self._rows, []
        self._flushed = time.monotonic()
        if notes:
            await asyncio.to_thread(self._write, notes, rows)

    def _write(self, notes: list[JobNote], rows: list[Mapping[str, Any]]) -> None:
        self._jobs.progress(
            self._job_id, notes, step=self.step, trained_tokens=self._trained_tokens
        )
        self._tracker.add(rows)
        self._folder.add_metrics(rows)


def note_diagnosis(jobs: JobRegistry, job_id: str, metrics: Sequence[Mapping[str, Any]]) -> None:
    """What the losses of a run say of its settings, in the job's log."""
    found = diagnose(metrics)
    notes = [JobNote(message=f.message, level="warn") for f in found if f.severity != "info"]
    jobs.note(job_id, notes)


def _openai_names(event: StepMetrics | EvaluationMetrics) -> dict[str, float]:
    """``valid_`` metrics are over the whole file too: no smaller sample of it is scored."""
    prefix, places = ("eval_", ("valid_", "full_valid_"))
    if isinstance(event, StepMetrics):
        prefix, places = "", ("train_",)
    return {
        f"{place}{name}": event.metrics[f"{prefix}{name}"]
        for place in places
        for name in ("loss", "mean_token_accuracy")
        if f"{prefix}{name}" in event.metrics
    }
