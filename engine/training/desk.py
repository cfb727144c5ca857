"""The engine's training jobs: a queue in order of submission, of which one runs at a time."""

import logging
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Final

from multiflora.kernels.single_thread import compute_alone, computing_alone

from ..background import NO_WORK, ServingLoad, TrainingCommand
from ..messages import CancelTraining, PauseTraining, Report, ResumeTraining, StartTraining, Trained
from ..request import TrainingStats
from .heap import return_freed_memory
from .job import JobFailed, JobPaused, JobQueued, JobResumed, TrainingJob
from .job_run import JobRun, Workplace
from .pace import Pace

logger = logging.getLogger(__name__)

# How often threads are looked after while nothing else happens.
_POLL_SECONDS: Final = 0.005
# Of a layer. Below it a quantum is a hundred operations of some microseconds: workers gain nothing,
# and beside a process that computes they make it four times as long.
_SHARED_WEIGHTS: Final = 4_000_000


class TrainingDesk:
    """Satisfies ``Background``.

    Of the jobs that are not paused, one that was started goes before those that wait, and an
    earlier one before a later one. A paused job keeps its memory; others run beside it as far as
    memory goes.
    """

    def __init__(self, place: Workplace, report: Callable[[Report], None]) -> None:
        self._place = place
        self._report = report
        self._pace = Pace(place.config, place.clock)
        # One thread, so that nothing overtakes: a job ends after its exports.
        self._thread = ThreadPoolExecutor(1, "training", initializer=compute_alone)
        is_small = place.network.config.layer_weights < _SHARED_WEIGHTS
        self._scope = computing_alone if is_small else nullcontext
        self._runs: dict[str, JobRun] = {}
        self._last: JobRun | None = None
        self._work: Counter[str] = Counter()
        self._seconds = 0.0

    def handle(self, command: TrainingCommand) -> None:
        match command:
            case StartTraining(document):
                self._submit(document)
            case PauseTraining(job_id):
                self._set_paused(job_id, True)
            case ResumeTraining(job_id):
                self._set_paused(job_id, False)
            case CancelTraining(job_id):
                if run := self._runs.get(job_id):
                    run.cancel()

    def turn(self, load: ServingLoad) -> float:
        """See ``Background``."""
        self._pace.serve(load)
        for run in list(self._runs.values()):
            run.poll()
            if run.is_over:
                del self._runs[run.job.id]
                return_freed_memory()
        run = self._current()
        if run is None:
            return _POLL_SECONDS if self._runs else NO_WORK
        if not run.ready() or not self._pace.allows(load):
            return _POLL_SECONDS
        self._advance(run, load)
        return 0.0

    def stats(self) -> TrainingStats:
        paused = [run for run in self._runs.values() if run.is_paused]
        running = [run for run in self._runs.values() if run.is_started and not run.is_paused]
        return TrainingStats(
            num_running=len(running),
            num_paused=len(paused),
            num_queued=len(self._runs) - len(running) - len(paused),
            quanta=self._work["quanta"],
            steps=self._work["steps"],
            tokens=self._work["tokens"],
            seconds=self._seconds,
            share=self._pace.share,
            bytes_used=self._place.budget.used_bytes,
            bytes_total=self._place.budget.capacity_bytes,
        )

    def close(self) -> None:
        """Stop where everything is; checkpoints stay."""
        for run in self._runs.values():
            run.cancel()
        self._last = None
        self._thread.shutdown()

    def _submit(self, document: dict[str, object]) -> None:
        try:
            job = TrainingJob.from_document(document)
        except ValueError as error:
            failure = JobFailed("invalid_training_settings", str(error))
            self._report(Trained(str(document.get("id")), failure))
            return
        if any(run.job.folder == job.folder or run.job.id == job.id for run in self._runs.values()):
            failure = JobFailed("invalid_request", f"a job of {job.id}'s id or folder is under way")
            self._report(Trained(job.id, failure))
            return
        ahead = len(self._runs)
        self._runs[job.id] = JobRun(
            job,
            self._place,
            self._thread,
            lambda event: self._report(Trained(job.id, event)),
            self._work,
        )
        self._report(Trained(job.id, JobQueued(ahead)))

    def _set_paused(self, job_id: str, is_paused: bool) -> None:
        run = self._runs.get(job_id)
        if run is None or run.is_paused == is_paused:
            return
        run.is_paused = is_paused
        event = JobPaused(run.step) if is_paused else JobResumed(run.step)
        self._report(Trained(job_id, event))

    def _current(self) -> JobRun | None:
        willing = [run for run in self._runs.values() if not run.is_paused and not run.is_ending]
        started = [run for run in willing if run.is_started]
        return next(iter(started or willing), None)

    def _advance(self, run: JobRun, load: ServingLoad) -> None:
        if run is not self._last:
            self._pace.times.clear()
            self._last = run
        started = self._place.clock()
        with self._scope():
            report = run.advance()
        seconds = self._place.clock() - started
        if report is not None:
            self._work["quanta"] += 1
            self._seconds += seconds
            self._pace.spend(report.kind, report.num_tokens, seconds, load)
