"""What the engine is told of a job, whoever ordered it: a server's client or the command line."""

from ..config import TrainingSettings
from ..job import TrainingJob
from .job import JobWish
from .job_folder import JobFolder


def training_order(
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
