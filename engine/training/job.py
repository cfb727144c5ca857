"""A training job as the API process describes it, and what is reported of it. Imports no torch."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_type_hints

import msgspec

from .config import PreferenceSettings, SupervisedSettings, TrainingSettings

EndReason = Literal["finished", "stopped_early", "cancelled"]
_METHODS = {"supervised": SupervisedSettings, "preference": PreferenceSettings}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """What to train, on which prepared data sets, and where its files go.

    ``folder`` belongs to the job alone: a job that is submitted again with the same folder goes on
    from its last checkpoint there. ``start`` is the digest of a stored version to go on from,
    ``reference`` that of the version preferences are measured against, None for the bare base.
    ``base_name`` is written into exported adapters.
    """

    id: str
    data: str
    folder: str
    settings: TrainingSettings
    base_name: str
    validation: str | None = None
    start: str | None = None
    reference: str | None = None

    def document(self) -> dict[str, Any]:
        """Plain values for msgpack or JSON; ``from_document`` reads them back."""
        document = asdict(self)
        kind = next(kind for kind, made in _METHODS.items() if type(self.settings.method) is made)
        document["settings"]["method"] = {"kind": kind, **document["settings"]["method"]}
        return document

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Self:
        """Raises ``ValueError`` for anything that ``document`` does not make."""
        try:
            settings = settings_of(document["settings"])
            rest = {name: value for name, value in document.items() if name != "settings"}
            return cls(settings=settings, **_typed(cls, rest))
        except (KeyError, TypeError, msgspec.ValidationError) as error:
            raise ValueError(f"this is no training job: {error}") from error


def settings_of(document: dict[str, Any]) -> TrainingSettings:
    """What a job's ``document`` has under ``settings``. Raises for anything else."""
    method = dict(document["method"])
    made = _METHODS[method.pop("kind")]
    rest = {name: value for name, value in document.items() if name != "method"}
    return TrainingSettings(method=msgspec.convert(method, made), **_typed(TrainingSettings, rest))


def _typed(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """Values of fields of the dataclass ``kind``, as their annotations say."""
    hints = get_type_hints(kind)
    known = {field.name for field in fields(kind)}
    if unknown := values.keys() - known:
        raise TypeError(f"unknown fields {sorted(unknown)}")
    return {name: msgspec.convert(value, hints[name]) for name, value in values.items()}


class JobQueued(msgspec.Struct, frozen=True, tag=True):
    """The job waits behind ``num_ahead`` others."""

    num_ahead: int


class JobStarted(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The first quantum follows. ``step`` steps were taken before an interruption.

    ``micro_batch_tokens`` is what the run uses: at most what the settings say. ``memory_bytes`` is
    what is reserved on the device beside the base. ``best_step`` had the lowest validation loss.
    """

    step: int
    num_steps: int
    micro_batch_tokens: int
    memory_bytes: int
    best_step: int | None = None


class StepMetrics(msgspec.Struct, frozen=True, tag=True):
    """``step`` counts from 1; metrics have TRL's names."""

    step: int
    metrics: dict[str, float]


class EvaluationMetrics(msgspec.Struct, frozen=True, tag=True):
    """The validation data was scored after ``step``; metrics have TRL's names, ``eval_loss``."""

    step: int
    metrics: dict[str, float]
    is_best: bool


class CheckpointExported(msgspec.Struct, frozen=True, tag=True):
    """The state after ``step`` is durable; ``folder`` is its PEFT folder in float32.

    Its reader removes it; one whose checkpoint has been dropped meanwhile is gone.
    """

    step: int
    folder: str


class JobPaused(msgspec.Struct, frozen=True, tag=True):
    """No quantum runs until the job is resumed; its memory stays reserved."""

    step: int


class JobResumed(msgspec.Struct, frozen=True, tag=True):
    step: int


class JobEnded(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The last event of a job that did not fail.

    ``folder`` is the resulting adapter, a PEFT folder in float32; a cancelled job has none.
    ``best_step`` is the step whose factors these are, if validation chose them.
    """

    reason: EndReason
    step: int
    num_tokens: int = 0
    best_step: int | None = None
    folder: str | None = None


class JobFailed(msgspec.Struct, frozen=True, tag=True):
    """The last event of a job that failed; checkpoints stay as they are."""

    code: str
    message: str


# Steps after the last checkpoint of an interrupted job are taken and reported again, and so are its
# exported checkpoints.
JobEvent = (
    JobQueued
    | JobStarted
    | StepMetrics
    | EvaluationMetrics
    | CheckpointExported
    | JobPaused
    | JobResumed
    | JobEnded
    | JobFailed
)
