"""A training job as it is kept: what was asked for, how far it is, and what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import msgspec

from ..data.config import Method
from .tracking.message import SinkName

Status: TypeAlias = Literal[
    "validating_files", "queued", "running", "succeeded", "failed", "cancelled"
]
Level: TypeAlias = Literal["info", "warn", "error"]
EventKind: TypeAlias = Literal["message", "metrics"]
# Where a wish names files.
FILE_PLACES: Final = (
    "training_file",
    "validation_file",
    "training.replay.file",
    "training.gate.recent",
)
TERMINAL: Final[tuple[Status, ...]] = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameters:
    """OpenAI's; None is ``auto``. The multiplier is of the rate that ``auto`` chooses."""

    n_epochs: int | None = None
    batch_size: int | None = None
    learning_rate_multiplier: float | None = None
    beta: float | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("n_epochs", 1, 50),
            ("batch_size", 1, 256),
            ("learning_rate_multiplier", 1e-6, 1e6),
            ("beta", 1e-6, 2),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name} is {value}; it must be between {low:g} and {high:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WandbRun:
    """OpenAI's integration: where Weights & Biases shows the job."""

    project: str
    name: str | None = None
    entity: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class JobWish:
    """What a client asked for. ``training`` are the sections of ``settings``, as given.

    ``report_to`` are the sinks that its metrics go to beside the log; ``wandb`` is of that one.
    """

    model: str
    training_file: str
    validation_file: str | None = None
    suffix: str | None = None
    seed: int = 0
    method: Method = "supervised"
    hyperparameters: Hyperparameters = field(default_factory=Hyperparameters)
    training: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    report_to: tuple[SinkName, ...] = ()
    wandb: WandbRun | None = None

    @property
    def replay_file(self) -> str | None:
        """Rows to repeat."""
        return self.training.get("replay", {}).get("file")

    @property
    def recent_file(self) -> str | None:
        """Rows that the live version answered of late, for the gate."""
        return self.training.get("gate", {}).get("recent")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobError:
    """Why a job failed; ``code`` is a stable word, ``param`` the field of the request."""

    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One row. Times are Unix times; ``settings`` is the document of the ``TrainingSettings``.

    ``name`` is what the result is to be called, ``start`` the version to go on from, ``digest`` the
    trained version once there is one, whether it passed its gate or not. ``tenant`` is whose job
    and result it is; empty is shared.
    """

    id: str
    status: Status
    wish: JobWish
    name: str
    created: int
    start: str | None = None
    settings: Mapping[str, Any] | None = None
    is_paused: bool = False
    is_sealed: bool = False
    step: int = 0
    num_steps: int | None = None
    trained_tokens: int | None = None
    digest: str | None = None
    verdict: Mapping[str, Any] | None = None
    error: JobError | None = None
    started: int | None = None
    finished: int | None = None
    tenant: str = ""

    @property
    def is_over(self) -> bool:
        return self.status in TERMINAL


@dataclass(frozen=True, slots=True, kw_only=True)
class JobNote:
    """One line of a job's log; ``data`` of metrics has their values by name, and ``step``."""

    message: str
    level: Level = "info"
    kind: EventKind = "message"
    data: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredNote:
    """A line of the log with its place in it."""

    id: str
    created: int
    note: JobNote


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCheckpoint:
    """A checkpoint that is served as ``name``; metrics have OpenAI's names."""

    id: str
    job: str
    step: int
    name: str
    metrics: Mapping[str, float]
    is_best: bool
    created: int


def to_json(value: object) -> str:
    """Plain values, dataclasses and tuples as JSON."""
    return msgspec.json.encode(value).decode()
