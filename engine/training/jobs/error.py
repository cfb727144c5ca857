"""What can be asked of a training job in vain. The server maps these to HTTP."""

from multiflora.adapters.error import RegistryError


class JobNotFound(RegistryError, KeyError):
    """No job has this id, or it was deleted."""

    code = "job_not_found"

    def __init__(self, job_id: str) -> None:
        super().__init__(f"no fine-tuning job has the id {job_id[:100]!r}")


class JobOver(RegistryError):
    """The job has ended, or is being published, so that nothing can be asked of it any more."""

    code = "job_over"


class JobRuns(RegistryError):
    """The job has not ended yet."""

    code = "job_runs"
