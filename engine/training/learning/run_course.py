"""A run after its beginning: its job is followed, and its version is judged as a canary."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, get_args

from ..data.file_registry import FileInUse, FileRegistry, UnknownFile
from ..feedback.completion import Kind
from ..feedback.feedback_store import FeedbackStore
from ..jobs.error import JobNotFound
from ..jobs.job import Job
from ..jobs.job_registry import JobRegistry
from .decision import decide
from .policy import LearningPolicy
from .replay_registry import ReplayRegistry
from .run import LearningRun, Status
from .run_registry import RunRegistry
from .run_rows import taught
from .traffic_window import TrafficWindows

logger = logging.getLogger(__name__)


class Adapters(Protocol):
    """The names that learn; changes may be repeated, and do nothing where others were faster."""

    def digests(self, name: str) -> tuple[str, str | None]:
        """The live version and the canary's. Raises ``UnknownName``."""
        ...

    def tenant(self, name: str) -> str:
        """Whose it is. Raises ``UnknownName``."""
        ...

    async def promote(self, name: str, digest: str, evidence: Mapping[str, Any]) -> None:
        """Make the canary ``digest`` the live version."""
        ...

    async def end_canary(self, name: str, digest: str, evidence: Mapping[str, Any]) -> None:
        """Have the live version answer all requests again."""
        ...


class RunCourse:
    """``policy`` is what an adapter has now; ``on_end`` is told of every run that ends."""

    def __init__(
        self,
        runs: RunRegistry,
        store: FeedbackStore,
        *,
        replay: ReplayRegistry,
        files: FileRegistry,
        jobs: JobRegistry,
        adapters: Adapters,
        windows: TrafficWindows,
        policy: Callable[[str], LearningPolicy],
        on_end: Callable[[LearningRun], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._runs = runs
        self._store = store
        self._replay = replay
        self._files = files
        self._jobs = jobs
        self._adapters = adapters
        self._windows = windows
        self._policy = policy
        self._on_end = on_end
        self._clock = clock

    async def follow(self, run: LearningRun) -> None:
        if run.status == "training":
            await self._follow_job(run)
        elif run.status == "canary":
            await self._judge(run)

    async def _follow_job(self, run: LearningRun) -> None:
        assert run.job is not None
        try:
            job = await asyncio.to_thread(self._jobs.get, run.job)
        except JobNotFound:
            await self.end(run, "failed", "the job was deleted")
            return
        if not job.is_over:
            return
        live, canary = self._adapters.digests(run.adapter)
        match job.status:
            case "succeeded" if job.digest is not None and job.digest == canary:
                await self._drop_files(run)
                await asyncio.to_thread(self._runs.watch, run.id, job.digest)
            case "succeeded":
                await self.end(run, *_by_others(job.digest, live), digest=job.digest)
            case "failed" if job.error is not None:
                is_refused = job.error.code == "gate_failed"
                status: Status = "refused" if is_refused else "failed"
                reason = job.error.message
                await self.end(run, status, reason, digest=job.digest, verdict=job.verdict)
            case _:
                await self.end(run, "cancelled", "the job was cancelled")

    async def _judge(self, run: LearningRun) -> None:
        assert run.digest is not None
        assert run.start is not None
        name = run.adapter
        live, canary = self._adapters.digests(name)
        if canary != run.digest:
            await self.end(run, *_by_others(run.digest, live))
            return
        if live != run.start:
            reason = "the name was moved to another version while the canary ran"
            await self._adapters.end_canary(name, run.digest, _evidence(run, {"reason": reason}))
            await self.end(run, "superseded", reason)
            return
        self._windows.open(name, live=live, canary=run.digest, traffic=run.traffic)
        await self._decide(run, run.digest)

    async def _decide(self, run: LearningRun, digest: str) -> None:
        policy = self._policy(run.adapter)
        traffic, since = self._windows.traffic(run.adapter), run.watched or run.created
        opinions = [
            await asyncio.to_thread(self._store.opinion, run.adapter, one, since=since)
            for one in (str(run.start), digest)
        ]
        decision = decide(
            traffic, *opinions, policy=policy.canary, age_seconds=self._clock() - since
        )
        if traffic != run.traffic:
            await asyncio.to_thread(self._runs.set_traffic, run.id, traffic)
        if decision.action == "wait":
            return
        evidence = _evidence(run, decision.document())
        if decision.action == "promote":
            await self._adapters.promote(run.adapter, digest, evidence)
            await self.end(run, "promoted", decision.reason, verdict=decision.document())
        else:
            await self._adapters.end_canary(run.adapter, digest, evidence)
            await self.end(run, "rolled_back", decision.reason, verdict=decision.document())

    async def end(
        self,
        run: LearningRun,
        status: Status,
        reason: str,
        *,
        digest: str | None = None,
        verdict: Mapping[str, Any] | None = None,
    ) -> None:
        if status == "promoted":
            await asyncio.to_thread(self._remember, run)
        ended = await asyncio.to_thread(
            lambda: self._runs.end(run.id, status, reason, digest=digest, verdict=verdict)
        )
        self._windows.close(run.adapter)
        await self._drop_files(run)
        if ended:
            logger.info("%s of %s is %s: %s", run.id, run.adapter, status, reason)
            self._on_end(await asyncio.to_thread(self._runs.get, run.id))

    def _remember(self, run: LearningRun) -> None:
        """What users get from now on is repeated by later runs; doing it twice changes nothing."""
        if capacity := self._policy(run.adapter).replay_capacity:
            learned = self._store.of_adapter(run.adapter, get_args(Kind), run=run.id)
            self._replay.add(run.adapter, taught(learned), capacity=capacity)

    async def _drop_files(self, run: LearningRun) -> None:
        """The store has the rows; copies go when no job reads them any more."""
        run = await asyncio.to_thread(self._runs.get, run.id)
        for file in await asyncio.to_thread(self.files_of, run):
            with contextlib.suppress(UnknownFile, FileInUse):
                await asyncio.to_thread(self._files.delete, file)

    def files_of(self, run: LearningRun) -> set[str]:
        """Files that were made for the run and are still there."""
        named = {run.file, *_named_by(self._job(run))}
        return {file.id for file in self._files.internal() if file.id in named}

    def _job(self, run: LearningRun) -> Job | None:
        with contextlib.suppress(JobNotFound):
            return None if run.job is None else self._jobs.get(run.job)
        return None


def _named_by(job: Job | None) -> tuple[str | None, ...]:
    if job is None:
        return ()
    return job.wish.training_file, job.wish.validation_file, job.wish.replay_file


def _by_others(digest: str | None, live: str) -> tuple[Status, str]:
    """What became of a version that is no canary: somebody else decided."""
    if digest == live:
        return "promoted", "the name points at the version"
    return "superseded", "the name was changed meanwhile; the version is kept as it is"


def _evidence(run: LearningRun, document: Mapping[str, Any]) -> dict[str, Any]:
    return {"run": run.id, "job": run.job, **document}
