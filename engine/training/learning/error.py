"""What can be asked of the loop in vain. The server maps these to HTTP."""

from multiflora.adapters.error import RegistryError


class LearningRuns(RegistryError):
    """A run of the adapter is under way."""

    code = "learning_runs"


class LearningOff(RegistryError):
    """The adapter has no learning policy, or one that is switched off."""

    code = "learning_off"


class RunNotFound(RegistryError, KeyError):
    """No learning run has this id."""

    code = "learning_run_not_found"

    def __init__(self, run_id: str) -> None:
        super().__init__(f"no learning run has the id {run_id[:100]!r}")
