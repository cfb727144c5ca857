"""What the engine is told to do for a job."""

from typing import Any

from ..config import TrainingSettings
from ..job import TrainingJob
from .job import Job
from .workshop import Workshop


def training_order(shop: Workshop, job: Job, settings: TrainingSettings | None) -> TrainingJob:
    """The job as a ``TrainingJob``; ``settings`` None are those that the job has kept."""
    folder = shop.folders[job.id]
    has_validation = job.wish.validation_file is not None
    common: dict[str, Any] = {
        "id": job.id,
        "data": str(folder.training.absolute()),
        "folder": str(folder.run.absolute()),
        "base_name": shop.base_name,
        "validation": str(folder.validation.absolute()) if has_validation else None,
        "start": job.start,
        # A preference is measured against what the job goes on from.
        "reference": job.start if job.wish.method == "dpo" else None,
    }
    if settings is not None:
        return TrainingJob(settings=settings, **common)
    return TrainingJob.from_document({**common, "settings": job.settings})
