"""The continual loop: from feedback to a job, from its version to a canary, and from there on.

`tick` looks at every adapter that learns: what is due begins, what runs is followed, what answers a
share of the requests is judged. Each step is durable before the next begins, so that a server
which is started after a crash goes on where the last one stood.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any, Final

from multiflora.adapters.error import AdapterRejected, RegistryUnavailable, UnknownName

from ...errors import RequestRejected
from ..data.file_registry import FileInUse, FileRegistry, UnknownFile
from ..feedback.completion import Kind
from ..feedback.feedback_store import FeedbackStore
from ..feedback.inbox import CompletionInbox
from ..feedback.training_row import KINDS, row_kind_of
from ..jobs.error import JobNotFound, JobOver
from ..jobs.job import Job
from ..jobs.training_jobs import SERVER, JobOwner, TrainingJobs
from .error import LearningOff, LearningRuns
from .policy import LearningPolicy
from .replay_registry import ReplayRegistry
from .run import LearningRun
from .run_course import Adapters, RunCourse
from .run_registry import RunRegistry
from .run_start import RunStart
from .traffic_window import TrafficWindows

logger = logging.getLogger(__name__)

_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS = 600, 24 * 3600
_TRIM_SECONDS: Final = 600.0
_SCRUB_SECONDS: Final = 60.0


class Learner:
    """All methods belong to one event loop. ``on_end`` is told of every run that ends.

    Files that are marked as internal are its own.
    """

    def __init__(
        self,
        runs: RunRegistry,
        store: FeedbackStore,
        *,
        replay: ReplayRegistry,
        files: FileRegistry,
        jobs: TrainingJobs,
        adapters: Adapters,
        on_end: Callable[[LearningRun], None] = lambda run: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.runs = runs
        self.store = store
        self.inbox = CompletionInbox(store)
        self.windows = TrafficWindows()
        self._files = files
        self._jobs = jobs
        self._adapters = adapters
        self._clock = clock
        self._policies = runs.policies()
        self._start = RunStart(runs, store, replay=replay, files=files, jobs=jobs)
        self._course = RunCourse(
            runs,
            store,
            replay=replay,
            files=files,
            jobs=jobs.rows,
            adapters=adapters,
            windows=self.windows,
            policy=lambda name: self._policies.get(name, LearningPolicy()),
            on_end=on_end,
            clock=clock,
        )
        # Runs begin and end in turn: what is erased cannot come back through one that begins.
        self._turn = asyncio.Lock()
        self._trimmed = 0.0
        # The server before may have ended between deleting a name and scrubbing what it had. The
        # copies that this one made of the database have nothing of that.
        self._must_scrub, self._keep_copies = True, True
        self._next_scrub = 0.0
        files.guard(self._need_of)

    def is_keeping(self, name: str) -> bool:
        """Whether answers of the adapter are kept; the store itself decides once more."""
        policy = self._policies.get(name)
        return policy is not None and policy.is_keeping

    async def start(self) -> None:
        """Go on with what an earlier server left. Call it once, after the jobs'."""
        async with self._turn:
            await self._read_policies()
            for run in await asyncio.to_thread(self.runs.open_runs):
                if run.status == "collecting" and not await self._start.recover(run):
                    await self._course.end(run, "cancelled", "the server ended while the run began")

    async def set_policy(
        self, name: str, policy: LearningPolicy, *, owner: JobOwner = SERVER
    ) -> None:
        """Raises ``UnknownName``, ``RequestRejected`` for what no job could run with.

        ``owner`` is who asks, and may name its own files alone.
        """
        live, _ = self._adapters.digests(name)
        await asyncio.to_thread(self._start.check, name, policy, live, owner=owner)
        async with self._turn:
            if not await asyncio.to_thread(self.runs.set_policy, name, policy):
                raise UnknownName(name)
            self._policies[name] = policy

    async def policy(self, name: str) -> LearningPolicy:
        """What the adapter has, or one that keeps nothing. Raises ``UnknownName``."""
        self._adapters.digests(name)
        policies = await asyncio.to_thread(self.runs.policies)
        return policies.get(name, LearningPolicy())

    async def learn(self, name: str) -> Job:
        """Begin a run now. Raises ``LearningOff``, ``LearningRuns``, ``RequestRejected``."""
        self._adapters.digests(name)
        await self.inbox.flush()
        async with self._turn:
            await self._read_policies()
            policy = self._policies.get(name)
            if policy is None or not policy.enabled:
                raise LearningOff(
                    f"{name!r} does not learn; PUT /v1/adapters/{name}/learning with enabled=true"
                )
            return await self._begin(name, policy)

    async def tick(self) -> None:
        """Do what is due."""
        await self.inbox.flush()
        async with self._turn:
            await self._read_policies()
            await self._sweep()
            for run in await asyncio.to_thread(self.runs.open_runs):
                with contextlib.suppress(UnknownName):
                    await self._course.follow(run)
            for name, policy in self._policies.items():
                if policy.enabled and await asyncio.to_thread(self._is_due, name, policy):
                    await self._begin_quietly(name, policy)
        if self._clock() - self._trimmed >= _TRIM_SECONDS:
            self._trimmed = self._clock()
            await asyncio.to_thread(self._trim)
        if self._must_scrub and self._clock() >= self._next_scrub:
            await self._scrub()

    async def delete(self, feedback_id: str, *, view: str | None = None) -> None:
        """Erase one piece of feedback. Raises ``FeedbackNotFound``."""
        async with self._turn:
            runs = await asyncio.to_thread(self.store.runs_with, feedback_id, view=view)
            await self._call_off(runs)
            with self._scrubbing_later():
                await asyncio.to_thread(self.store.delete, feedback_id, view=view)

    async def erase(
        self, *, adapter: str | None = None, user: str | None = None, view: str | None = None
    ) -> tuple[int, int]:
        """Erase all answers of an adapter or a user, with every copy that a run has made of them.

        Returns how many answers and how much feedback went.
        """
        await self.inbox.flush()
        async with self._turn:
            whose: dict[str, Any] = {"adapter": adapter, "user": user, "view": view}
            await self._call_off(await asyncio.to_thread(self.store.runs_of, **whose))
            with self._scrubbing_later():
                return await asyncio.to_thread(self.store.erase, **whose)

    async def _read_policies(self) -> None:
        """From the database: they go with their names, as does all that was kept for these."""
        known, self._policies = self._policies, await asyncio.to_thread(self.runs.policies)
        if not known.keys() <= self._policies.keys():
            self._must_scrub, self._keep_copies = True, False

    async def _scrub(self) -> None:
        """Of what is gone nothing may stay in a file; the loop goes on while that cannot be."""
        try:
            await asyncio.to_thread(self.store.scrub, keep_copies=self._keep_copies)
            self._must_scrub, self._keep_copies = False, True
        except RegistryUnavailable as error:
            self._next_scrub = self._clock() + _SCRUB_SECONDS
            logger.warning("%s", error)

    @contextlib.contextmanager
    def _scrubbing_later(self) -> Iterator[None]:
        """Rows are gone when it fails, and nothing will ask to scrub them again."""
        try:
            yield
        except RegistryUnavailable:
            self._must_scrub, self._keep_copies = True, False
            raise

    def _is_due(self, name: str, policy: LearningPolicy) -> bool:
        now = self._clock()
        if not policy.is_due(self.store.waiting(name, _kinds(policy)), now):
            return False
        if any(run.adapter == name for run in self.runs.open_runs()):
            return False
        num_failures, ended = self.runs.num_failures(name)
        wait = min(_FIRST_RETRY_SECONDS << max(num_failures - 1, 0), _LAST_RETRY_SECONDS)
        return num_failures == 0 or now - ended >= wait

    async def _begin_quietly(self, name: str, policy: LearningPolicy) -> None:
        try:
            await self._begin(name, policy)
        except (RequestRejected, AdapterRejected, UnknownName, LearningRuns) as error:
            logger.warning("%s cannot learn now: %s", name, error)

    async def _begin(self, name: str, policy: LearningPolicy) -> Job:
        live, _ = self._adapters.digests(name)
        run = await asyncio.to_thread(self.runs.open_run, name, _kinds(policy))
        try:
            tenant = self._adapters.tenant(name)
            return await self._start.begin(run, policy, live=live, tenant=tenant)
        except Exception as error:
            await self._course.end(run, "failed", str(error))
            raise

    async def _call_off(self, run_ids: Collection[str]) -> None:
        """End runs, with their jobs and all that these made of the rows."""
        for run in await asyncio.to_thread(self.runs.open_runs):
            if run.id in run_ids and run.job is not None and run.status == "training":
                await self._end_job(run.job)
                reason = "feedback that it learned from was erased"
                await self._course.end(run, "cancelled", reason)

    async def _end_job(self, job_id: str) -> None:
        with contextlib.suppress(JobNotFound):
            try:
                await self._jobs.cancel(job_id)
            except JobOver:
                await self._jobs.wait(job_id)

    async def _sweep(self) -> None:
        """Remove files of runs that are no more: their adapter was deleted, or a server died."""
        for file in await asyncio.to_thread(self._orphans):
            try:
                await asyncio.to_thread(self._files.delete, file)
            except FileInUse:
                for job in await asyncio.to_thread(self._jobs.rows.unfinished):
                    if file in (job.wish.training_file, job.wish.replay_file):
                        await self._end_job(job.id)
            except UnknownFile:
                continue

    def _orphans(self) -> list[str]:
        wanted = {file for run in self.runs.open_runs() for file in self._course.files_of(run)}
        return [file.id for file in self._files.internal() if file.id not in wanted]

    def _trim(self) -> None:
        for name, policy in self._policies.items():
            oldest = int(self._clock()) - policy.keep_seconds
            with self._scrubbing_later():
                self.store.trim(name, num_completions=policy.keep_completions, oldest=oldest)

    def _need_of(self, file_id: str) -> str | None:
        for name, policy in self.runs.policies().items():
            for place, file in policy.files.items():
                if file == file_id:
                    return f"it is the {place} of {name!r}'s learning policy"
        return None


def _kinds(policy: LearningPolicy) -> tuple[Kind, ...]:
    return KINDS[row_kind_of(policy.method)]
