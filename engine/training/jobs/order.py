"""What the engine is told to do for a job, whoever ordered it: a client, or the command line."""

from ..config import TrainingSettings
from ..job import TrainingJob, settings_of
from .job import Job, JobWish
from .job_folder import JobFolder
from .workshop import Workshop


def training_order(shop: Workshop, job: Job, settings: TrainingSettings | None) -> TrainingJob:
    """The job as a ``TrainingJob``; ``settings`` None are those that the job has kept."""
    if settings is None:
        assert job.settings is not None
        settings = settings_of(dict(job.settings))
    return make_order(
        *(job.id, job.wish, settings, shop.folders[job.id]),
        base_name=shop.base_name,
        start=job.start,
    )


def make_order(
    job_id: str,
    wish: JobWish,
    settings: TrainingSettings,
    folder: JobFolder,
    *,
    base_name: str,
    start: str | None,
) -> TrainingJob:
    """``start`` is the digest of the stored version to go on from; a preference is measured against
    it, or else against the bare base.
    """
    has_validation = wish.validation_file is not None
    return TrainingJob(
        id=job_id,
        data=str(folder.training.absolute()),
        folder=str(folder.run.absolute()),
        settings=settings,
        base_name=base_name,
        validation=str(folder.validation.absolute()) if has_validation else None,
        start=start,
        reference=start if wish.method == "dpo" else None,
    )
