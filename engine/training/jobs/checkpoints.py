"""A job's checkpoints: each is served under a name of its own while it is one of the last."""

import logging
from asyncio import to_thread
from contextlib import suppress
from pathlib import Path

from multiflora.adapters import durable
from multiflora.adapters.error import AdapterRejected, ForeignName

from ..job import CheckpointExported
from .job import Job, JobCheckpoint, JobNote
from .job_log import JobLog
from .settings import kept_checkpoints
from .workshop import Workshop

logger = logging.getLogger(__name__)


class Checkpoints:
    """Publishes the checkpoints of one job, and takes the older ones out of service."""

    def __init__(self, shop: Workshop, job: Job) -> None:
        self._shop = shop
        self._job = job

    async def add(self, event: CheckpointExported, log: JobLog) -> None:
        """Serve the checkpoint; the exported folder is gone afterwards.

        One that cannot be served is a warning in the log: the job goes on.
        """
        job, folder = self._job, Path(event.folder)
        metrics = await to_thread(self._shop.jobs.openai_metrics, job.id, event.step)
        try:
            digest = await self._shop.publishing.take_in(
                folder,
                source=f"training:{job.id}",
                parents=() if job.start is None else (job.start,),
                metrics={"job": job.id, **metrics},
            )
        except (AdapterRejected, OSError) as error:
            if not folder.is_dir():
                # The engine dropped it for later ones, as would be done with its name.
                return
            if isinstance(error, OSError):
                raise
            await self._warn(event, error)
            return
        finally:
            # Half of it under its name would pass for a whole export after a crash.
            with suppress(OSError):
                await to_thread(durable.remove_folder, folder)
        name = checkpoint_name(job, event.step)
        try:
            await self._shop.publishing.point(name, digest, tenant=job.tenant)
        except ForeignName as error:
            await self._warn(event, error)
            await self._shop.publishing.discard(digest)
            return
        await to_thread(self._add_row, event.step, name, metrics, log.best_step == event.step)
        # Also for one that is known already: a crash may have come between its row and this.
        await self._prune()

    async def _warn(self, event: CheckpointExported, error: Exception) -> None:
        text = f"The checkpoint after step {event.step} cannot be served: {error}"
        await to_thread(self._shop.jobs.note, self._job.id, [JobNote(message=text, level="warn")])

    async def remove_all(self) -> None:
        found, _ = await to_thread(self._shop.jobs.checkpoints, self._job.id, limit=10_000)
        for checkpoint in found:
            await self._remove(checkpoint)

    def _add_row(self, step: int, name: str, metrics: dict[str, float], is_best: bool) -> None:
        is_new = self._shop.jobs.add_checkpoint(
            self._job.id, step=step, name=name, metrics=metrics, is_best=is_best
        )
        if is_new:
            note = JobNote(message=f"Checkpoint after step {step} is served as {name}")
            self._shop.jobs.note(self._job.id, [note])

    async def _prune(self) -> None:
        found, _ = await to_thread(self._shop.jobs.checkpoints, self._job.id, limit=10_000)
        for checkpoint in found[kept_checkpoints(self._job.wish) :]:
            if not checkpoint.is_best:
                await self._remove(checkpoint)

    async def _remove(self, checkpoint: JobCheckpoint) -> None:
        await self._shop.publishing.remove(checkpoint.name, tenant=self._job.tenant)
        await to_thread(self._shop.jobs.remove_checkpoint, checkpoint.id)


def checkpoint_name(job: Job, step: int) -> str:
    """Of the result's name and the job's id, since several jobs may make versions of one name."""
    short = short_id(job.id)
    prefix = job.name if short in job.name else f"{job.name}:{short}"
    return f"{prefix}:ckpt-step-{step}"


def short_id(job_id: str) -> str:
    """The first digits of a job's id, for names."""
    return job_id.rpartition("-")[2][:8]
