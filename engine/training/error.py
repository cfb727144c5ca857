"""What can end a training run, or keep it from starting, as part of the engine's error tree."""

from ..errors import EngineError


class TrainingError(EngineError):
    """A run cannot start or go on; ``code`` is a stable word, the message names the remedy."""

    code = "training_failed"


class InvalidTrainingData(TrainingError):
    """Rows that cannot be trained on as they are."""

    code = "invalid_training_data"


class TrainingDiverged(TrainingError):
    """The loss or a gradient is NaN or infinite; the last checkpoint is left as it is."""

    code = "training_diverged"


class CheckpointMismatch(TrainingError):
    """The checkpoint belongs to other settings, data or another base, or is damaged."""

    code = "checkpoint_mismatch"


class NotEnoughTrainingMemory(TrainingError):
    """The run does not fit what is set aside for training."""

    code = "not_enough_memory"
