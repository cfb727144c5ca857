"""The life of one job, from its files to a name that is served.

    validating_files --prepare--> queued --train--> running --gate--> (sealed) --point--> succeeded

Every arrow is durable before the next begins, and may be walked again: a server that is started
after a crash goes on with the arrow that was under way.
"""

import asyncio
import logging
import threading
from collections.abc import Mapping
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from multiflora.adapters.error import AdapterRejected, RegistryError

from ...errors import EngineUnavailable, RequestFailed, RequestRejected
from ..config import LoraSettings
from ..data.config import Method
from ..data.dataset import PreparedDataset
from ..data.file_registry import UnknownFile
from ..job import (
    CheckpointExported,
    EvaluationMetrics,
    JobEnded,
    JobEvent,
    JobFailed,
    JobPaused,
    JobQueued,
    JobResumed,
    JobStarted,
    StepMetrics,
)
from .checkpoints import Checkpoints
from .job import Job, JobError, JobNote
from .job_census import Split
from .job_log import JobLog, note_diagnosis
from .order import training_order
from .publication import publish
from .quality_gate import Check, QualityGate, Verdict
from .settings import DataSize, data_config, gate_settings, lora_settings_of, training_settings
from .tracked_job import close_tracker, make_tracker
from .workshop import Workshop

logger = logging.getLogger(__name__)

# So often in a row an engine may die without a step forward before the job is taken for the cause.
_MAX_DEATHS: Final = 5
_TRANSIENT: Final = frozenset({"engine_unavailable", "engine_died", "adapter_unavailable"})


class JobFailure(Exception):
    """Why a job cannot go on."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.error = JobError(code=code, message=message, param=param)


class JobRunner:
    """Runs one job; ``run`` returns when it has ended, or is cancelled from outside."""

    def __init__(self, shop: Workshop, job: Job) -> None:
        self._shop = shop
        self._id = job.id
        self.method: Method = job.wish.method
        self._folder = shop.folders[job.id]
        self._tracker = make_tracker(shop, job)
        self._log = JobLog(shop.jobs, job, self._folder, self._tracker)
        self._checkpoints = Checkpoints(shop, job)
        self._is_stopping = threading.Event()
        self._may_run = asyncio.Event()
        self._is_training = False
        if not job.is_paused:
            self._may_run.set()

    @property
    def estimated_finish(self) -> int | None:
        return self._log.estimated_finish

    @property
    def losses(self) -> Mapping[Split, float]:
        """The last ones."""
        return self._log.losses

    def pause(self) -> None:
        """Have the engine stop within a quantum; a job that waits is not handed to it."""
        self._may_run.clear()
        self._log.stand()
        self._tell(self._shop.engine.pause_training)

    def resume(self) -> None:
        self._may_run.set()
        self._tell(self._shop.engine.resume_training)

    async def run(self) -> None:
        """Never raises but for a cancellation; whatever goes wrong is the job's failure."""
        try:
            await self._run_through()
        except asyncio.CancelledError:
            await self._log.flush()
            raise
        finally:
            self._is_stopping.set()
            await asyncio.to_thread(close_tracker, self._tracker, self._shop, self._id)

    async def _run_through(self) -> None:
        """Run, and again while the disk fails: that is not the job's fault."""
        failure: JobError | None = None
        told = ""
        while True:
            try:
                if failure is None:
                    return await self._run()
                await asyncio.to_thread(self._shop.jobs.fail, self._id, failure)
                return None
            except JobFailure as found:
                failure = found.error
                continue
            except (RegistryError, OSError) as error:
                logger.exception("%s stands still and is tried again", self._id)
                told = await self._tell_of_disk(error, told)
            except Exception:
                logger.exception("%s failed", self._id)
                text = "the server's log has the details"
                failure = JobError(code="internal_error", message=text)
                continue
            await asyncio.sleep(self._shop.last_pause)

    async def _tell_of_disk(self, error: Exception, told: str) -> str:
        """A warning in the job's log, unless the last one said the same or the log fails too."""
        reason = getattr(error, "strerror", None) or str(error)
        text = f"The job stands still and is tried again: {reason}"
        if text != told:
            with suppress(RegistryError, OSError):
                await asyncio.to_thread(
                    self._shop.jobs.note, self._id, [JobNote(message=text, level="warn")]
                )
                return text
        return told

    async def _run(self) -> None:
        job = await self._job()
        if job.status == "validating_files":
            await self._plan(job)
            job = await self._job()
        if not job.is_over and not job.is_sealed:
            ended = await self._train(job)
            await self._judge(job, ended)
            job = await self._job()
        if job.is_sealed and not job.is_over:
            await self._publish(job)

    async def _plan(self, job: Job) -> None:
        async with self._shop.preparing_turn:
            await self._in_thread(partial(self._prepare, job))
        try:
            settings, note = await asyncio.to_thread(self._settings, job)
        except RequestRejected as error:
            raise JobFailure(error.code, str(error), error.param) from None
        document = training_order(self._shop, job, settings).document()["settings"]
        await asyncio.to_thread(self._shop.jobs.plan, self._id, document, note)

    async def _in_thread(self, work: Any) -> None:
        """Run in a thread that is over when this is, also when the job is cancelled."""
        thread = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            await asyncio.shield(thread)
        except asyncio.CancelledError:
            self._is_stopping.set()
            await asyncio.gather(thread, return_exceptions=True)
            raise

    def _prepare(self, job: Job) -> None:
        wish, files = job.wish, self._shop.files
        try:
            validation = None if wish.validation_file is None else files.path(wish.validation_file)
            self._shop.preparing.prepare(
                self._folder,
                data_config(wish),
                training_file=files.path(wish.training_file),
                validation_file=validation,
                is_cancelled=self._is_stopping.is_set,
            )
        except UnknownFile as error:
            raise JobFailure(error.code, str(error), "training_file") from None
        except RequestRejected as error:
            raise JobFailure(error.code, str(error), error.param) from None

    def _settings(self, job: Job) -> tuple[Any, str]:
        with PreparedDataset.open(self._folder.training) as data:
            report = data.info.report
            size = DataSize(num_rows=len(data), num_tokens=report.num_trained_tokens)
        settings = training_settings(job.wish, self._shop.model, size, start=self._start(job))
        note = (
            f"Files validated: {report.num_rows} rows, {report.num_tokens} tokens, "
            f"{report.num_trained_tokens} of them trained; moving job to queued state"
        )
        notes = [
            JobNote(message=f.message, level="warn")
            for f in report.findings
            if f.severity != "info"
        ]
        self._shop.jobs.note(job.id, notes)
        return settings, note

    def _start(self, job: Job) -> LoraSettings | None:
        return None if job.start is None else lora_settings_of(self._shop.store.open(job.start))

    async def _train(self, job: Job) -> JobEnded:
        if not self._folder.training.is_dir():
            # Cleared by hand or lost: the files are still there.
            await self._in_thread(partial(self._prepare, job))
        pause, num_deaths, furthest = self._shop.first_pause, 0, -1
        while True:
            await self._may_run.wait()
            try:
                return await self._attempt(job)
            except EngineUnavailable as error:
                num_deaths += self._is_training
                if self._log.step > furthest:
                    pause, num_deaths, furthest = self._shop.first_pause, 0, self._log.step
                await self._stand_by(error)
            if num_deaths >= _MAX_DEATHS:
                raise JobFailure(
                    "engine_died",
                    f"the engine died {num_deaths} times without a step forward; see its log, and "
                    "lower micro_batch_tokens if memory ran out",
                )
            await asyncio.sleep(pause)
            pause = min(2 * pause, self._shop.last_pause)

    async def _stand_by(self, error: Exception) -> None:
        """The engine is gone: say so once, and wait for the next one."""
        self._log.stand()
        await self._log.flush()
        if self._is_training:
            self._is_training = False
            note = JobNote(message=f"Training was interrupted ({error})", level="warn")
            await asyncio.to_thread(self._shop.jobs.requeue, self._id, note)

    async def _attempt(self, job: Job) -> JobEnded:
        """Hand the job to the engine and follow it. Raises ``EngineUnavailable``."""
        order = training_order(self._shop, job, None)
        async with aclosing(self._shop.engine.train(order)) as events:
            async for event in events:
                ended = await self._take(job, event)
                if ended is not None:
                    return ended
        raise EngineUnavailable("the engine gave the job up")

    async def _take(self, job: Job, event: JobEvent) -> JobEnded | None:
        match event:
            case JobStarted():
                await self._begin(event)
                self._tracker.begin(event.step, {"model": job.wish.model, **(job.settings or {})})
            case StepMetrics() | EvaluationMetrics():
                await self._log.add(event)
            case CheckpointExported():
                await self._log.flush()
                await self._checkpoints.add(event, self._log)
            case JobQueued(num_ahead):
                if num_ahead:
                    await self._note(f"The job waits behind {num_ahead} others")
                self._pause_again()
            case JobPaused(step):
                await self._log.flush()
                await self._note(f"Training stands after step {step}")
            case JobResumed(step):
                await self._note(f"Training goes on after step {step}")
            case JobFailed(code, message):
                await self._log.flush()
                raise JobFailure(code, message)
            case JobEnded(reason="cancelled"):
                raise EngineUnavailable("the engine gave the job up")
            case JobEnded():
                await self._log.flush()
                return event
        return None

    async def _begin(self, event: JobStarted) -> None:
        self._is_training = True
        self._log.begin(step=event.step, num_steps=event.num_steps, best_step=event.best_step)
        text = "Fine-tuning job started"
        if event.step:
            text = f"Fine-tuning goes on from the checkpoint after step {event.step}"
        data = {"micro_batch_tokens": event.micro_batch_tokens, "memory_bytes": event.memory_bytes}
        await asyncio.to_thread(
            self._shop.jobs.begin,
            self._id,
            step=event.step,
            num_steps=event.num_steps,
            notes=[JobNote(message=text, data=data)],
        )
        self._pause_again()

    def _pause_again(self) -> None:
        """A pause that came while the job was on its way to the engine."""
        if not self._may_run.is_set():
            self._tell(self._shop.engine.pause_training)

    async def _judge(self, job: Job, ended: JobEnded) -> None:
        """Take the result in and judge it; a version that is refused stays, and no name moves."""
        assert ended.folder is not None
        await self._note("Checking the trained version")
        parents = () if job.start is None else (job.start,)
        metrics = await asyncio.to_thread(self._shop.jobs.metrics, self._id)
        await asyncio.to_thread(note_diagnosis, self._shop.jobs, self._id, metrics)
        last = await asyncio.to_thread(self._shop.jobs.openai_metrics, self._id, ended.step)
        try:
            digest = await self._shop.publishing.take_in(
                Path(ended.folder),
                source=f"training:{self._id}",
                parents=parents,
                metrics={"job": self._id, **last},
            )
        except AdapterRejected as error:
            check = Check(name="integrity", passed=False, rule=str(error))
            await self._refuse(Verdict((check,)), None)
            return
        await asyncio.to_thread(self._shop.jobs.take_candidate, self._id, digest)
        verdict = await self._verdict(job, ended, digest, metrics)
        self._tracker.add_verdict(ended.step, verdict.document()["checks"])
        if not verdict.passed:
            await self._refuse(verdict, digest)
            return
        await asyncio.to_thread(
            self._shop.jobs.seal,
            self._id,
            digest=digest,
            verdict=verdict.document(),
            note=f"The quality gate was passed by version {digest[:12]}",
        )

    async def _verdict(self, job: Job, ended: JobEnded, digest: str, metrics: Any) -> Verdict:
        pause, num_failures = self._shop.first_pause, 0
        while True:
            try:
                gate = QualityGate(
                    self._shop.engine,
                    end_tokens=self._shop.end_tokens,
                    max_model_len=self._shop.engine.info.max_model_len,
                )
                with PreparedDataset.open(self._folder.training) as data:
                    return await gate.judge(
                        digest,
                        data=data,
                        metrics=metrics,
                        step=ended.step if ended.best_step is None else ended.best_step,
                        settings=gate_settings(job.wish),
                        seed=job.wish.seed,
                    )
            except (EngineUnavailable, RequestFailed) as error:
                code = error.code
                num_failures += code == "engine_died"
                if num_failures >= _MAX_DEATHS or (
                    isinstance(error, RequestFailed) and code not in _TRANSIENT
                ):
                    return Verdict((Check(name="generation", passed=False, rule=str(error)),))
            await asyncio.sleep(pause)
            pause = min(2 * pause, self._shop.last_pause)

    async def _refuse(self, verdict: Verdict, digest: str | None) -> None:
        error = JobError(
            code="gate_failed",
            message=f"the trained version did not pass the quality gate: {verdict.complaint}",
        )
        await asyncio.to_thread(
            partial(
                *(self._shop.jobs.fail, self._id, error),
                digest=digest,
                verdict=verdict.document(),
            )
        )

    async def _publish(self, job: Job) -> None:
        result = await publish(self._shop, job)
        note = f"The job has successfully completed; {result}"
        await asyncio.to_thread(self._shop.jobs.succeed, self._id, note)

    async def _note(self, text: str) -> None:
        await asyncio.to_thread(self._shop.jobs.note, self._id, [JobNote(message=text)])

    async def _job(self) -> Job:
        return await asyncio.to_thread(self._shop.jobs.get, self._id)

    def _tell(self, command: Any) -> None:
        try:
            command(self._id)
        except EngineUnavailable:
            logger.debug("%s hears of it when the engine is back", self._id)
