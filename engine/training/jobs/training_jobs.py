"""All jobs of a server: makes them, runs them, and goes on with them after a restart."""

import asyncio
import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, get_args

from multiflora.adapters.name import MAX_NAME_CHARS, check_name

from ...errors import RequestRejected
from ..data.file_registry import StoredFile, UnknownFile
from .checkpoints import Checkpoints, short_id
from .error import JobNotFound
from .job import Job, JobWish, Status
from .job_census import JobCensus
from .job_runner import JobRunner
from .settings import PARAM, check_wish, gate_policy, lora_settings_of, publish_settings
from .tracked_job import check_tracking
from .workshop import Workshop

logger = logging.getLogger(__name__)

_PURPOSE: Final = "fine-tune"
_MAX_BASE_CHARS: Final = 48
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True, slots=True)
class JobOwner:
    """Whose a job is to be, and whose files it may read: ``view`` None is everybody's.

    ``tenant`` None is that of the adapter which has the name of the result.
    """

    tenant: str | None = None
    view: str | None = None


SERVER: Final = JobOwner()


class InvalidTrainingFile(RequestRejected):
    """A file that is known to be bad."""

    code = "invalid_training_file"


class TrainingJobs:
    """All methods belong to one event loop. ``reserved`` are names that no result may have."""

    def __init__(self, shop: Workshop, *, reserved: Sequence[str] = ()) -> None:
        self._shop = shop
        self._reserved = tuple(reserved)
        self._runners: dict[str, JobRunner] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.rows = shop.jobs
        shop.files.guard(shop.jobs.need_of)

    async def start(self) -> None:
        """Go on with what an earlier server left. Call it once."""
        for job in await asyncio.to_thread(self._sweep):
            self._run(job)

    async def stop(self) -> None:
        """Stop all jobs where they are; the next server goes on with them."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def create(
        self, wish: JobWish, *, start: str | None = None, owner: JobOwner = SERVER
    ) -> Job:
        """Acknowledge a job and begin with it; ``start`` is the stored version to go on from.

        Raises ``RequestRejected`` for what cannot become a job, and ``AdapterRejected`` if training
        cannot go on from ``start``.
        """
        await self._check_judge(wish, owner)
        job = await asyncio.to_thread(self._create, wish, start, owner)
        self._run(job)
        return job

    async def cancel(self, job_id: str) -> Job:
        """Raises ``JobNotFound`` and ``JobOver``."""
        job = await asyncio.to_thread(self.rows.cancel, job_id)
        await self._end_task(job_id)
        if job.digest is not None:
            await self._shop.publishing.discard(job.digest)
        await asyncio.to_thread(self._shop.folders[job_id].clear)
        return await asyncio.to_thread(self.rows.get, job_id)

    async def pause(self, job_id: str) -> Job:
        """Raises ``JobNotFound`` and ``JobOver``."""
        job = await asyncio.to_thread(self.rows.set_paused, job_id, True)
        if runner := self._runners.get(job_id):
            runner.pause()
        return job

    async def resume(self, job_id: str) -> Job:
        """Raises ``JobNotFound`` and ``JobOver``."""
        job = await asyncio.to_thread(self.rows.set_paused, job_id, False)
        if runner := self._runners.get(job_id):
            runner.resume()
        return job

    async def delete(self, job_id: str) -> None:
        """Forget a job that has ended, with its checkpoints and a version that was refused.

        The name that it made stays. Raises ``JobNotFound`` and ``JobRuns``.
        """
        job = await asyncio.to_thread(self.rows.get, job_id)
        if job.is_over:
            await self._end_task(job_id)
            await Checkpoints(self._shop, job).remove_all()
            if job.digest is not None and job.status != "succeeded":
                await self._shop.publishing.discard(job.digest)
        await asyncio.to_thread(self.rows.delete, job_id)
        await asyncio.to_thread(self._shop.folders[job_id].remove)

    def estimated_finish(self, job_id: str) -> int | None:
        """A Unix time, while the job trains and its pace is known."""
        runner = self._runners.get(job_id)
        return runner.estimated_finish if runner else None

    def census(self) -> JobCensus:
        """Waits for the disk."""
        counts = self.rows.counts()
        return JobCensus(
            statuses={
                known: sum(n for status, _, n in counts if status == known)
                for known in get_args(Status)
            },
            verdicts={
                known: sum(n for _, verdict, n in counts if verdict is known)
                for known in (True, False)
            },
            losses={
                (runner.method, split): loss
                for runner in tuple(self._runners.values())
                for split, loss in runner.losses.items()
            },
        )

    async def wait(self, job_id: str) -> Job:
        """The job once it has ended."""
        if task := self._tasks.get(job_id):
            await asyncio.wait([task])
        return await asyncio.to_thread(self.rows.get, job_id)

    def _run(self, job: Job) -> None:
        runner = self._runners[job.id] = JobRunner(self._shop, job)
        self._tasks[job.id] = asyncio.create_task(self._run_to_end(job.id, runner))

    async def _run_to_end(self, job_id: str, runner: JobRunner) -> None:
        try:
            await runner.run()
            with suppress(JobNotFound):
                if (await asyncio.to_thread(self.rows.get, job_id)).is_over:
                    await asyncio.to_thread(self._shop.folders[job_id].clear)
        finally:
            self._runners.pop(job_id, None)
            self._tasks.pop(job_id, None)

    async def _end_task(self, job_id: str) -> None:
        if task := self._tasks.get(job_id):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def check(self, wish: JobWish, *, start: str | None) -> None:
        """Raise as ``create`` does, for everything but the files."""
        check_tracking(wish, self._shop.tracking)
        lora = None if start is None else lora_settings_of(self._shop.store.open(start))
        check_wish(wish, start=lora)
        if wish.suffix is not None:
            self._check_suffix(wish.suffix)
        if publish_settings(wish).mode == "canary" and (wish.suffix is None or start is None):
            raise RequestRejected(
                "a canary needs a name that others already use: go on from an adapter, and give "
                "its name as suffix",
                param=f"{PARAM}.publish.mode",
            )

    def _create(self, wish: JobWish, start: str | None, owner: JobOwner) -> Job:
        self.check(wish, start=start)
        self._check_files(wish, owner)
        self._check_beside(wish, owner)
        notes = [
            f"Created fine-tuning job on {wish.model}",
            f"Validating training file: {wish.training_file}",
        ]
        if wish.validation_file is not None:
            notes.append(f"Validating validation file: {wish.validation_file}")
        return self.rows.create(
            wish,
            name=lambda job_id: self._name(wish, job_id),
            start=start,
            notes=notes,
            tenant=owner.tenant,
        )

    def _name(self, wish: JobWish, job_id: str) -> str:
        if wish.suffix is not None:
            return wish.suffix
        base = "".join(
            c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in wish.model
        )
        return f"ft:{base[:_MAX_BASE_CHARS]}:{short_id(job_id)}"

    def _check_suffix(self, suffix: str) -> None:
        # Checkpoints append to it.
        longest = MAX_NAME_CHARS // 2
        try:
            check_name(suffix, self._reserved)
        except ValueError as error:
            raise RequestRejected(str(error), param="suffix") from None
        if len(suffix) > longest:
            raise RequestRejected(f"suffix has up to {longest} characters", param="suffix")

    def _check_files(self, wish: JobWish, owner: JobOwner) -> None:
        self.check_file(wish.training_file, "training_file", owner)
        if wish.validation_file is not None:
            self.check_file(wish.validation_file, "validation_file", owner)
            if wish.validation_file == wish.training_file:
                raise InvalidTrainingFile(
                    "a validation file with the rows that are trained on measures nothing; leave "
                    "it out, or split the file",
                    param="validation_file",
                )

    def _check_beside(self, wish: JobWish, owner: JobOwner) -> None:
        """The files that settings name, which are settings of the right kind by now."""
        for file_id, param in (
            (wish.replay_file, f"{PARAM}.replay.file"),
            (wish.recent_file, f"{PARAM}.gate.recent"),
        ):
            if file_id is not None:
                self.check_file(file_id, param, owner)

    async def _check_judge(self, wish: JobWish, owner: JobOwner) -> None:
        """The gate asks what the job's tenant sees, whoever made the job."""
        name = gate_policy(wish).judge
        if name is None or name in self._shop.judges:
            return
        view = owner.view if owner.tenant is None else owner.tenant
        if await self._shop.publishing.live(name, view=view) is None:
            known = ", ".join(sorted(self._shop.judges)) or "none"
            raise RequestRejected(
                f"no adapter and no allowed endpoint is called {name[:64]!r}; endpoints: {known}",
                param=f"{PARAM}.gate.judge",
            )

    def check_file(self, file_id: str, param: str, owner: JobOwner = SERVER) -> StoredFile:
        """Raise ``RequestRejected`` for a file that no job of ``owner`` can read."""
        try:
            file = self._shop.files.get(file_id, view=owner.view)
        except UnknownFile as error:
            raise RequestRejected(str(error), param=param) from None
        if file.purpose != _PURPOSE:
            raise RequestRejected(f"{file_id} was not uploaded for {_PURPOSE}", param=param)
        if file.status == "error":
            raise InvalidTrainingFile(f"{file_id}: {file.details}", param=param)
        return file

    def _sweep(self) -> list[Job]:
        """What has to go on; files that a crash left are removed."""
        unfinished = self.rows.unfinished()
        known = {job.id for job in unfinished}
        for job_id in self._shop.folders.present():
            if job_id not in known:
                self._sweep_folder(job_id)
        return unfinished

    def _sweep_folder(self, job_id: str) -> None:
        try:
            self.rows.get(job_id)
        except JobNotFound:
            self._shop.folders[job_id].remove()
        else:
            self._shop.folders[job_id].clear()
