"""A workshop around a scripted engine: real rows, real data sets, no tensors."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from multiflora.adapters.database import Database
from multiflora.adapters.registry_schema import MIGRATIONS
from multiflora.adapters.store import AdapterStore
from multiflora.engine.errors import EngineUnavailable
from multiflora.engine.models.config import ModelConfig
from multiflora.engine.request import EngineInfo, FinishReason, GenerationRequest, TokenEvent
from multiflora.engine.training.data.config import DataConfig
from multiflora.engine.training.data.dataset import DatasetWriter
from multiflora.engine.training.data.file_registry import FileRegistry
from multiflora.engine.training.data.report import Report
from multiflora.engine.training.example import Example, Preference, Rating
from multiflora.engine.training.job import (
    CheckpointExported,
    EvaluationMetrics,
    JobEnded,
    JobEvent,
    JobQueued,
    JobStarted,
    StepMetrics,
    TrainingJob,
)
from multiflora.engine.training.jobs.job import JobWish
from multiflora.engine.training.jobs.job_folder import JobFolder, JobFolders
from multiflora.engine.training.jobs.job_registry import JobRegistry
from multiflora.engine.training.jobs.preparation import BesideFile
from multiflora.engine.training.jobs.training_jobs import TrainingJobs
from multiflora.engine.training.jobs.workshop import Workshop

END = 2
MODEL = ModelConfig(
    family="llama",
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_layers=1,
    num_heads=2,
    num_kv_heads=2,
    head_dim=16,
    norm_eps=1e-5,
    max_position=128,
)


@dataclass
class ScriptedEngine:
    """Takes ``num_steps`` steps with a checkpoint after every second one, kept in ``done``.

    ``ends`` says whether the trained versions end their answers.
    """

    num_steps: int = 6
    eval_losses: Mapping[int, float] = field(default_factory=dict)
    failure: JobEvent | None = None
    is_alive: bool = True
    num_deaths: int = 0
    ends: bool = True
    done: dict[str, int] = field(default_factory=dict)
    paused: set[str] = field(default_factory=set)
    orders: list[TrainingJob] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    @property
    def info(self) -> EngineInfo:
        return cast(EngineInfo, SimpleNamespace(max_model_len=64))

    def die(self) -> None:
        self.is_alive = False
        self.num_deaths += 1
        self.paused.clear()

    def pause_training(self, job_id: str) -> None:
        self._check()
        self.paused.add(job_id)

    def resume_training(self, job_id: str) -> None:
        self._check()
        self.paused.discard(job_id)

    async def train(self, job: TrainingJob) -> AsyncGenerator[JobEvent]:
        self._check()
        self.orders.append(job)
        life, is_over = self.num_deaths, False
        try:
            yield JobQueued(0)
            async for event in self._events(job, life):
                if life != self.num_deaths:
                    raise EngineUnavailable("the engine process ended")
                is_over = isinstance(event, JobEnded)
                yield event
        finally:
            if not is_over:
                self.cancelled.append(job.id)

    async def _events(self, job: TrainingJob, life: int) -> AsyncGenerator[JobEvent]:
        folder, first = Path(job.folder), self.done.get(job.folder, 0)
        yield JobStarted(
            step=first, num_steps=self.num_steps, micro_batch_tokens=64, memory_bytes=1
        )
        for step in range(first + 1, self.num_steps + 1):
            await asyncio.sleep(0)
            while job.id in self.paused and life == self.num_deaths:
                await asyncio.sleep(0.001)
            if self.failure is not None and step == self.num_steps:
                yield self.failure
                return
            yield StepMetrics(step, {"loss": 1 / step, "num_tokens": 10.0 * step})
            if step in self.eval_losses:
                loss = {"eval_loss": self.eval_losses[step]}
                yield EvaluationMetrics(step, loss, is_best=step == 2)
            if step % 2 == 0:
                exported = folder / f"step-{step}"
                exported.mkdir(parents=True, exist_ok=True)
                self.done[job.folder] = step
                yield CheckpointExported(step, str(exported))
        yield JobEnded(reason="finished", step=self.num_steps, folder=str(folder / "result"))

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent]:
        self._check()
        await asyncio.sleep(0)
        if self.ends:
            yield TokenEvent(request_id=request.id, tokens=(7, 8))
            yield TokenEvent(request_id=request.id, finish_reason=FinishReason.STOP)
        else:
            tokens = (9,) * request.sampling.max_tokens
            yield TokenEvent(
                request_id=request.id, tokens=tokens, finish_reason=FinishReason.LENGTH
            )

    def _check(self) -> None:
        if not self.is_alive:
            raise EngineUnavailable("the engine is restarting")


@dataclass
class ScriptedPublishing:
    """Names and versions in memory; a folder's name stands for its content.

    ``failure`` is raised once.
    """

    names: dict[str, str] = field(default_factory=dict)
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    canaries: dict[str, str] = field(default_factory=dict)
    tenants: dict[str, str] = field(default_factory=dict)
    failure: Exception | None = None

    async def take_in(
        self, folder: Path, *, source: str, parents: tuple[str, ...], metrics: Mapping[str, Any]
    ) -> str:
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
        digest = f"{source}/{folder.name}"
        self.versions[digest] = {"parents": parents, "metrics": dict(metrics)}
        return digest

    async def live(self, name: str, *, view: str | None = None) -> str | None:
        hidden = view is not None and self.tenants.get(name, "") not in ("", view)
        return None if hidden else self.names.get(name)

    async def point(self, name: str, digest: str, *, tenant: str = "") -> None:
        await asyncio.sleep(0)
        assert digest in self.versions
        self.names[name] = digest

    async def set_canary(self, name: str, digest: str, weight: float, *, live: str) -> bool:
        await asyncio.sleep(0)
        if self.names.get(name) != live or self.canaries.get(name, digest) != digest:
            return False
        self.canaries[name] = digest
        return True

    async def discard(self, digest: str) -> None:
        if digest not in self.names.values():
            self.versions.pop(digest, None)

    async def remove(self, name: str, *, tenant: str = "") -> None:
        self.names.pop(name, None)


@dataclass
class ScriptedPreparing:
    """Makes a data set of two short rows, or raises ``failure``."""

    failure: Exception | None = None

    def prepare(
        self,
        folder: JobFolder,
        config: DataConfig,
        *,
        training_file: Path,
        validation_file: Path | None,
        beside: Sequence[BesideFile] = (),
        is_cancelled: Any = None,
    ) -> None:
        if self.failure is not None:
            raise self.failure
        folder.make()
        for target in (folder.training, folder.validation if validation_file else None):
            if target is not None and not target.exists():
                write_dataset(target, config)
        for one in beside:
            write_dataset(Path(one.folder), DataConfig())


def write_dataset(folder: Path, config: DataConfig) -> None:
    report = Report(format="messages", num_rows=2, num_tokens=10, num_trained_tokens=6)
    with DatasetWriter(folder, config) as writer:
        for line in (1, 2):
            if config.method == "dpo":
                writer.add(Preference((4, 5), (7, 8, END), (9, END), line))
            elif config.method == "kto":
                writer.add(Rating((4, 5), (7, 8, END), line == 1, line))
            else:
                writer.add(Example((4, 5, 7, 8, END), (0.0, 0.0, 1.0, 1.0, 1.0), line))
        writer.finish(report, fingerprint="text")


class NumberText:
    """Tokens as numbers."""

    def prompt(self, question: str) -> list[int]:
        return [4, 5]

    def text(self, tokens: Sequence[int]) -> str:
        return " ".join(map(str, tokens))


@dataclass
class World:
    """A server's jobs; ``restart`` is another server on the same disk."""

    shop: Workshop
    jobs: TrainingJobs
    engine: ScriptedEngine
    publishing: ScriptedPublishing
    preparing: ScriptedPreparing

    def wish(self, **changes: Any) -> JobWish:
        return JobWish(**{"model": "base", "training_file": self.add_file(), **changes})

    def add_file(self, status: Any = "processed", details: str | None = None) -> str:
        with self.shop.files.staging() as folder:
            (folder / "rows").write_bytes(b"{}")
            stored = self.shop.files.add(
                folder / "rows", filename="rows.jsonl", purpose="fine-tune"
            )
        self.shop.files.settle(stored.id, status, details)
        return stored.id

    def messages(self, job_id: str) -> list[str]:
        """The log, the oldest first, without metrics."""
        found, _ = self.jobs.rows.notes(job_id, limit=1000)
        return [one.note.message for one in reversed(found) if one.note.kind == "message"]

    def restart(self) -> None:
        self.jobs = TrainingJobs(self.shop, reserved=["base"])


def make_world(
    data_dir: Path,
    *,
    database: Database | None = None,
    publishing: ScriptedPublishing | None = None,
) -> World:
    database = database or Database.in_memory(MIGRATIONS)
    publishing = publishing or ScriptedPublishing()
    engine, preparing = ScriptedEngine(), ScriptedPreparing()
    shop = Workshop(
        jobs=JobRegistry(database),
        folders=JobFolders(data_dir),
        files=FileRegistry(database, data_dir),
        engine=engine,
        preparing=preparing,
        publishing=publishing,
        store=AdapterStore(data_dir),
        model=MODEL,
        base_name="base",
        end_tokens=frozenset({END}),
        text=NumberText(),
        first_pause=0.001,
        last_pause=0.01,
    )
    jobs = TrainingJobs(shop, reserved=["base"])
    return World(shop, jobs, engine, publishing, preparing)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


@pytest.fixture
def new_world(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], World]:
    return lambda: make_world(tmp_path_factory.mktemp("jobs"))
