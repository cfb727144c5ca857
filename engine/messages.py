"""What crosses the boundary between the API process and the engine process, as msgpack.

A frame is a 4-byte big-endian length and one message. No pickle, no code, no paths from clients.
"""

from typing import Any

import msgspec

from multiflora.adapters.tier import Tier

from .config import EngineConfig
from .request import EngineInfo, EngineStats, GenerationRequest, TokenEvent
from .training.job import JobEvent


class Configure(msgspec.Struct, frozen=True, tag=True):
    """First message to an engine process."""

    config: EngineConfig


class Submit(msgspec.Struct, frozen=True, tag=True):
    request: GenerationRequest


class Abort(msgspec.Struct, frozen=True, tag=True):
    request_id: str


class LoadVersion(msgspec.Struct, frozen=True, tag=True):
    """Bring the stored version ``digest`` into memory ahead of its first request.

    It stays in host memory if the device has no free room: nobody is evicted for it.
    """

    digest: str


class UnloadVersion(msgspec.Struct, frozen=True, tag=True):
    """Drop a version once no lease and no pin is left."""

    digest: str


class Pin(msgspec.Struct, frozen=True, tag=True):
    """Bring a version to the device and never evict it; answered when it is there."""

    digest: str


class Unpin(msgspec.Struct, frozen=True, tag=True):
    digest: str


class GetAdapters(msgspec.Struct, frozen=True, tag=True):
    pass


class GetStats(msgspec.Struct, frozen=True, tag=True):
    pass


class StartTraining(msgspec.Struct, frozen=True, tag=True):
    """``job`` is the document of a ``TrainingJob``."""

    job: dict[str, Any]


class PauseTraining(msgspec.Struct, frozen=True, tag=True):
    job_id: str


class ResumeTraining(msgspec.Struct, frozen=True, tag=True):
    job_id: str


class CancelTraining(msgspec.Struct, frozen=True, tag=True):
    job_id: str


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    pass


class Ready(msgspec.Struct, frozen=True, tag=True):
    info: EngineInfo


class StartFailed(msgspec.Struct, frozen=True, tag=True):
    code: str
    message: str


class Progress(msgspec.Struct, frozen=True, tag=True):
    """A line about what a starting engine is doing; ``fraction`` is between 0 and 1."""

    stage: str
    fraction: float


class Events(msgspec.Struct, frozen=True, tag=True):
    """All token events of one step."""

    events: tuple[TokenEvent, ...]


class VersionLoaded(msgspec.Struct, frozen=True, tag=True):
    digest: str


class VersionFailed(msgspec.Struct, frozen=True, tag=True):
    digest: str
    code: str
    message: str


class VersionPinned(msgspec.Struct, frozen=True, tag=True):
    digest: str


class PinFailed(msgspec.Struct, frozen=True, tag=True):
    digest: str
    code: str
    message: str


class Adapters(msgspec.Struct, frozen=True, tag=True):
    """The tier of every version in memory; all others are on disk."""

    tiers: dict[str, Tier]


class Stats(msgspec.Struct, frozen=True, tag=True):
    stats: EngineStats


class Trained(msgspec.Struct, frozen=True, tag=True):
    """Something happened to a training job; ``JobEnded`` and ``JobFailed`` come last."""

    job_id: str
    event: JobEvent


Command = (
    Configure
    | Submit
    | Abort
    | LoadVersion
    | UnloadVersion
    | Pin
    | Unpin
    | GetAdapters
    | GetStats
    | StartTraining
    | PauseTraining
    | ResumeTraining
    | CancelTraining
    | Shutdown
)
Report = (
    Ready
    | StartFailed
    | Progress
    | Events
    | VersionLoaded
    | VersionFailed
    | VersionPinned
    | PinFailed
    | Adapters
    | Stats
    | Trained
)
