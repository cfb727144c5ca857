"""From what a job was asked for to the sinks that its metrics go to."""

import logging
from collections.abc import Collection
from contextlib import suppress

from msgspec.structs import replace

from multiflora.adapters.error import RegistryError

from .job import Job, JobNote, JobWish
from .tracking.availability import check_sinks, complaint_about
from .tracking.message import SinkName, TrackedRun
from .tracking.tracker import Tracker
from .workshop import Workshop

logger = logging.getLogger(__name__)


def check_tracking(wish: JobWish, allowed: Collection[SinkName]) -> None:
    """Raises ``TrackingUnavailable``."""
    if wish.wandb is not None:
        check_sinks(["wandb"], allowed=allowed, param="integrations")
    check_sinks(wish.report_to, allowed=allowed, param="training.report_to")


def make_tracker(shop: Workshop, job: Job) -> Tracker:
    """The job's sinks; a failure of one is a warning in the job's log."""

    def lose(sink: str, reason: str) -> None:
        note = JobNote(message=f"{sink} gets no metrics of this job: {reason}", level="warn")
        try:
            shop.jobs.note(job.id, [note])
        except Exception:  # a thread's outer edge; the job may be deleted by now
            logger.exception("%s lost %s, and the log of the job too", job.id, sink)

    runs: list[TrackedRun] = []
    for sink in job.wish.report_to:
        complaint = complaint_about(sink, allowed=shop.tracking)
        if complaint is None:
            runs.append(_tracked_run(shop, job, sink))
        elif not job.is_over:
            lose(sink, complaint)
    return Tracker(runs, on_failure=lose)


def close_tracker(tracker: Tracker, shop: Workshop, job_id: str) -> None:
    """Tell the sinks how the job ended, if it did; they finish on their own."""
    succeeded = None
    with suppress(RegistryError, OSError):
        job = shop.jobs.get(job_id)
        succeeded = job.status == "succeeded" if job.is_over else None
    tracker.close(succeeded)


def _tracked_run(shop: Workshop, job: Job, sink: SinkName) -> TrackedRun:
    run = TrackedRun(
        sink=sink,
        id=job.id,
        name=job.name,
        folder=str(shop.folders[job.id].tracked(sink).absolute()),
    )
    wanted = job.wish.wandb
    if sink != "wandb" or wanted is None:
        return run
    return replace(
        run,
        name=wanted.name or run.name,
        project=wanted.project,
        entity=wanted.entity,
        tags=wanted.tags,
    )
