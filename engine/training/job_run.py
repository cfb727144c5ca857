"""One job from its data to its exported adapter, in quanta that never wait for a disk.

open data (thread) -> fit memory -> measure micro-batches -> build the run (thread)
    -> quanta of the run, checkpoints exported (thread) -> export the result (thread)
"""

import logging
from collections import Counter, deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.store import AdapterStore

from ..config import TrainingConfig
from ..errors import EngineError
from .config import TrainingSettings
from .data.dataset import PreparedDataset
from .error import NotEnoughTrainingMemory
from .estimate import estimate_memory
from .example import Rows
from .exported_folder import export_checkpoint, export_result, exported_folder, sweep_exports
from .job import (
    CheckpointExported,
    EvaluationMetrics,
    JobEnded,
    JobEvent,
    JobFailed,
    JobStarted,
    StepMetrics,
    TrainingJob,
)
from .memory_budget import MemoryBudget
from .micro_batch import measure_tokens, read_record, write_record
from .network import TrainingNetwork
from .quantum import (
    CheckpointWritten,
    Evaluated,
    QuantumReport,
    RunEnded,
    StepTaken,
    TrainingEvent,
)
from .run import TrainingRun, make_task
from .stored_factors import read_reference, read_start
from .task import Task

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
# None is a pause until a thread is done or memory is free.
Steps = Generator[QuantumReport | None, None, Result]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """What all jobs of an engine work with.

    ``kernels`` is ``Ops.NAME``; ``synchronize`` waits for the device. On a host the copies that
    checkpoints are written from count against ``budget``, as they are of the same memory.
    """

    network: TrainingNetwork
    store: AdapterStore
    config: TrainingConfig
    budget: MemoryBudget
    kernels: str
    is_quantized: bool
    clock: Callable[[], float]
    synchronize: Callable[[], None]

    def needed_bytes(self, settings: TrainingSettings, micro_batch_tokens: int) -> int:
        """Raises ``ValueError`` for settings that do not suit the base."""
        batch = replace(settings.batch, micro_batch_tokens=micro_batch_tokens)
        memory = estimate_memory(
            self.network.config,
            replace(settings, batch=batch),
            dtype=str(self.network.dtype).removeprefix("torch."),
            kernels=self.kernels,
            is_quantized=self.is_quantized,
        )
        host = memory.host if self.network.device.type == "cpu" else 0
        return memory.device_bytes + host


@dataclass(frozen=True, slots=True)
class _Rows:
    """The data of a job, ready to be packed."""

    task: Task
    validation: Task | None

    @property
    def longest(self) -> int:
        """Tokens of the longest row, which no micro-batch can be smaller than."""
        tasks = (self.task, self.validation)
        return max(task.num_tokens(row) for task in tasks if task for row in range(task.num_rows))


class JobRun:
    """``advance`` while ``ready``; ``poll`` in every turn; over when ``is_over``.

    ``report`` is called by the thread that calls these, and so are no others. ``work`` counts what
    was done, under ``steps`` and ``tokens``.
    """

    def __init__(
        self,
        job: TrainingJob,
        place: Workplace,
        thread: ThreadPoolExecutor,
        report: Callable[[JobEvent], None],
        work: Counter[str],
    ) -> None:
        self.job = job
        self.is_paused = False
        self.is_over = False
        self._place = place
        self._thread = thread
        self._report = report
        self._work = work
        self._run: TrainingRun | None = None
        self._settings = job.settings
        self._num_tokens = 0
        self._awaited: Future[Any] | None = None
        self._wished_bytes: int | None = None
        self._exports: deque[tuple[int, Future[Path]]] = deque()
        self._ending: Future[JobEvent] | None = None
        # Rows are read from the disk's cache as they are needed.
        self._opened = ExitStack()
        self._steps = self._live()

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self._run.state.step if self._run else 0

    @property
    def is_started(self) -> bool:
        """Whether it holds memory."""
        return self._place.budget.holds(self.job.id)

    @property
    def is_ending(self) -> bool:
        """Whether only the disk is waited for; no quantum follows."""
        return self._ending is not None

    def ready(self) -> bool:
        """Whether ``advance`` would do something without waiting."""
        if self._ending or self.is_over or len(self._exports) >= self._settings.checkpoint.keep:
            # A checkpoint stays for as long as ``keep`` later ones are not written.
            return False
        if self._awaited is not None:
            return self._awaited.done()
        if self._wished_bytes is not None:
            return self._place.budget.has_room(self.job.id, self._wished_bytes)
        return self._run is None or self._run.has_ended or self._run.ready()

    def advance(self) -> QuantumReport | None:
        """Run one quantum, or go past a wait that is over. Never raises."""
        try:
            report = next(self._steps)
            self._place.synchronize()
        except StopIteration:
            return None
        except Exception as error:  # the job's outer edge
            self._fail(error)
            return None
        return report

    def poll(self) -> None:
        """Report what threads have done. Never raises."""
        while self._exports and self._exports[0][1].done():
            step, export = self._exports.popleft()
            try:
                folder = export.result()
            except Exception as error:  # the job's outer edge
                self._fail(error)
            else:
                self._report(CheckpointExported(step, str(folder)))
        if self._ending and self._ending.done() and not self._exports:
            self.is_over = True
            self._steps.close()
            self._run = None
            self._opened.close()
            self._place.budget.release(self.job.id)
            self._report(_last_event(self._ending))

    def cancel(self) -> None:
        """Take no further quantum; the last event follows when the disk has been waited for."""
        if not self._ending:
            step, num_tokens = self.step, self._num_tokens
            self._end(lambda: JobEnded(reason="cancelled", step=step, num_tokens=num_tokens))

    def _fail(self, error: Exception) -> None:
        if not self._ending:
            failure = _failure(error)
            self._end(lambda: failure)

    def _end(self, last: Callable[[], JobEvent]) -> None:
        """Close everything in the thread, after the exports, and make the last event there."""
        self._steps.close()
        run = self._run

        def close() -> JobEvent:
            if run:
                run.close()
            return last()

        self._ending = self._thread.submit(close)

    def _live(self) -> Steps[None]:
        # Whatever the rows are: a run that could never fit is refused before they are read.
        self._check_memory(self._place.needed_bytes(self._settings, 1))
        rows = yield from self._in_thread(self._open_rows)
        tokens = yield from self._choose_tokens(rows.longest)
        batch = replace(self._settings.batch, micro_batch_tokens=tokens)
        self._settings = replace(self._settings, batch=batch)
        self._run = yield from self._in_thread(lambda: self._build(rows))
        self._start(self._run)
        while not self._run.has_ended:
            if not self._run.ready():
                yield None
                continue
            report = self._run.run_quantum()
            if report.event:
                self._tell(self._run, report.event)
            yield report

    def _in_thread(self, function: Callable[[], Result]) -> Steps[Result]:
        future = self._thread.submit(function)
        self._awaited = future
        yield None
        self._awaited = None
        return future.result()

    def _open_rows(self) -> _Rows:
        job, method = self.job, self._settings.method
        validation = None
        if job.validation is not None:
            validation = make_task(self._open(job.validation), method)
        return _Rows(make_task(self._open(job.data), method), validation)

    def _open(self, folder: str) -> Rows[Any]:
        dataset = self._opened.enter_context(PreparedDataset.open(Path(folder)))
        dataset.check_tokens(self._place.network.config.vocab_size)
        return dataset

    def _choose_tokens(self, longest: int) -> Steps[int]:
        """Reserve memory, and size micro-batches by it and by the time of a quantum."""
        folder, place = Path(self.job.folder), self._place
        kept = read_record(folder)
        most = max(longest, self._settings.batch.micro_batch_tokens) if kept is None else kept
        while kept is None and most > longest and not self._fits(most):
            most = max(longest, most * 3 // 4)
        needed = place.needed_bytes(self._settings, most)
        self._check_memory(needed)
        yield from self._reserve(needed)
        if kept is not None:
            return kept
        measured = yield from measure_tokens(
            place.network,
            self._settings.lora,
            seconds=place.config.quantum_seconds,
            most=most,
            clock=place.clock,
            synchronize=place.synchronize,
        )
        tokens = max(longest, measured)
        yield from self._reserve(place.needed_bytes(self._settings, tokens))
        yield from self._in_thread(lambda: write_record(folder, tokens))
        return tokens

    def _fits(self, tokens: int) -> bool:
        needed = self._place.needed_bytes(self._settings, tokens)
        return needed <= self._place.budget.capacity_bytes

    def _check_memory(self, needed: int) -> None:
        capacity = self._place.budget.capacity_bytes
        if needed > capacity:
            raise NotEnoughTrainingMemory(
                f"the job needs {needed} bytes beside the base, --training-memory is {capacity}: "
                "lower the rank, target fewer modules, shorten the longest rows, or raise "
                "--training-memory"
            )

    def _reserve(self, needed: int) -> Steps[None]:
        self._wished_bytes = needed
        if not self._place.budget.has_room(self.job.id, needed):
            yield None
        self._wished_bytes = None
        self._place.budget.reserve(self.job.id, needed)

    def _build(self, rows: _Rows) -> TrainingRun:
        job, place = self.job, self._place
        start, reference = None, None
        if job.start is not None:
            start = read_start(place.store, job.start, self._settings.lora, place.network)
        if job.reference is not None:
            reference = read_reference(place.store, job.reference, place.network)
        sweep_exports(Path(job.folder))
        return TrainingRun(
            place.network,
            rows.task,
            self._settings,
            folder=Path(job.folder),
            validation=rows.validation,
            start=start,
            reference=reference,
        )

    def _start(self, run: TrainingRun) -> None:
        self._num_tokens = run.state.num_tokens
        tokens = self._settings.batch.micro_batch_tokens
        self._report(
            JobStarted(
                step=run.state.step,
                num_steps=run.num_steps,
                micro_batch_tokens=tokens,
                memory_bytes=self._place.needed_bytes(self._settings, tokens),
                best_step=run.state.best_step,
            )
        )
        for step, folder in run.checkpoints():
            self._export(step, folder)

    def _tell(self, run: TrainingRun, event: TrainingEvent) -> None:
        match event:
            case StepTaken(step, metrics):
                self._work["steps"] += 1
                self._work["tokens"] += run.state.num_tokens - self._num_tokens
                self._num_tokens = run.state.num_tokens
                self._report(StepMetrics(step, dict(metrics)))
            case Evaluated(step, metrics, is_best):
                self._report(EvaluationMetrics(step, dict(metrics), is_best))
            case CheckpointWritten(step, folder):
                self._export(step, folder)
            case RunEnded(step, reason):
                self._ending = self._thread.submit(self._finish, run, step, reason)

    def _export(self, step: int, checkpoint: Path) -> None:
        export = self._thread.submit(
            export_checkpoint,
            checkpoint,
            self._settings.lora,
            self._place.network.config,
            exported_folder(Path(self.job.folder), step),
            base_name=self.job.base_name,
        )
        self._exports.append((step, export))

    def _finish(self, run: TrainingRun, step: int, reason: Any) -> JobEvent:
        folder = export_result(
            run.factors,
            self._settings.lora,
            Path(self.job.folder),
            base_name=self.job.base_name,
        )
        best = run.state.best_step if self._settings.evaluation.load_best else None
        return JobEnded(
            reason=reason,
            step=step,
            num_tokens=run.state.num_tokens,
            best_step=best,
            folder=str(folder),
        )


def _last_event(ending: Future[JobEvent]) -> JobEvent:
    try:
        return ending.result()
    except Exception as error:  # the job's outer edge
        return _failure(error)


def _failure(error: Exception) -> JobFailed:
    """What the caller may know; anything unexpected is logged and not quoted."""
    match error:
        case EngineError() | AdapterRejected():
            return JobFailed(error.code, str(error))
        case torch.OutOfMemoryError():
            return JobFailed("not_enough_memory", "the device ran out of memory; lower the rank")
        case ValueError():
            return JobFailed("invalid_training_settings", str(error))
        case OSError():
            return JobFailed("training_failed", f"the disk failed: {error.strerror or error}")
    logger.error("a training job failed", exc_info=error)
    return JobFailed("training_failed", "the engine failed on this job; see its log")
