"""What jobs work with: the engine that trains, and the places where files and results go."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from multiflora.adapters.store import AdapterStore

from ...models.config import ModelConfig
from ...request import EngineInfo, GenerationRequest, TokenEvent
from ..data.config import DataConfig
from ..data.file_registry import FileRegistry
from ..gate.text_side import GateText
from ..job import JobEvent, TrainingJob
from .job_folder import JobFolder, JobFolders
from .job_registry import JobRegistry
from .preparation import BesideFile
from .tracking.message import SinkName


class Engine(Protocol):
    """The engine as jobs see it; ``EngineClient`` is one."""

    @property
    def info(self) -> EngineInfo: ...

    def train(self, job: TrainingJob) -> AsyncGenerator[JobEvent]: ...

    def pause_training(self, job_id: str) -> None: ...

    def resume_training(self, job_id: str) -> None: ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent]: ...


class Publishing(Protocol):
    """Takes in what was trained, and moves names. All of it may be repeated after a crash."""

    async def take_in(
        self, folder: Path, *, source: str, parents: tuple[str, ...], metrics: Mapping[str, Any]
    ) -> str:
        """Check and store a PEFT folder as a version that no name has; returns its digest.

        Raises ``AdapterRejected``, and ``OSError`` or an error of the registry.
        """
        ...

    async def live(self, name: str, *, view: str | None = None) -> str | None:
        """The version that the name points at; None if a tenant's ``view`` has no such name."""
        ...

    async def point(self, name: str, digest: str, *, tenant: str = "") -> None:
        """Make the name, for ``tenant``, or swap its name to the version."""
        ...

    async def set_canary(self, name: str, digest: str, weight: float, *, live: str) -> bool:
        """Give the version a share of the name's requests, if the name still points at ``live``
        and has no other canary; whether it did.
        """
        ...

    async def discard(self, digest: str) -> None:
        """Let go of a version that was taken in, unless a name has it."""
        ...

    async def remove(self, name: str, *, tenant: str = "") -> None:
        """Forget the name, if it is there and the tenant's."""
        ...


class Preparing(Protocol):
    """Makes data sets of files; see ``Preparation``."""

    def prepare(
        self,
        folder: JobFolder,
        config: DataConfig,
        *,
        training_file: Path,
        validation_file: Path | None,
        beside: Sequence[BesideFile] = (),
        is_cancelled: Any = None,
    ) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """``base_name`` is what exported adapters call the base; ``judges`` are the URLs of endpoints
    that the gate may ask, by the names that clients know; pauses between tries are in seconds,
    and double up to the last. ``tracking`` are the sinks that jobs may send metrics to.
    """

    jobs: JobRegistry
    folders: JobFolders
    files: FileRegistry
    engine: Engine
    preparing: Preparing
    publishing: Publishing
    store: AdapterStore
    model: ModelConfig
    base_name: str
    end_tokens: frozenset[int]
    text: GateText
    judges: Mapping[str, str] = field(default_factory=dict)
    tracking: tuple[SinkName, ...] = ()
    first_pause: float = 0.2
    last_pause: float = 30.0
    # Tokenizing takes a core; one job at a time is enough to keep the trainer busy.
    preparing_turn: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
