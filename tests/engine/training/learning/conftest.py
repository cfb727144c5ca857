"""The loop around scripted jobs: real names, real rows, no tensors."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import save_file

from multiflora.adapters.error import InvalidCanary, PreconditionFailed
from multiflora.adapters.folder import AdapterFolder
from multiflora.adapters.registry import Registry
from multiflora.adapters.version import Version
from multiflora.engine.training.feedback.completion import Completion
from multiflora.engine.training.feedback.feedback_store import FeedbackStore
from multiflora.engine.training.jobs.job import Job
from multiflora.engine.training.learning.learner import Learner
from multiflora.engine.training.learning.policy import LearningPolicy
from multiflora.engine.training.learning.replay_registry import ReplayRegistry
from multiflora.engine.training.learning.run import LearningRun
from multiflora.engine.training.learning.run_registry import RunRegistry

from ..jobs.conftest import ScriptedPublishing, World, make_world

LIVE = "a" * 64


@dataclass
class RegistryPublishing(ScriptedPublishing):
    """Names of a registry; a version's digest is that of its folder's path.

    ``keep`` stores something that later runs can go on from.
    """

    registry: Registry = field(default_factory=Registry)
    keep: Callable[[str], object] = lambda digest: None

    async def take_in(
        self, folder: Path, *, source: str, parents: tuple[str, ...], metrics: Mapping[str, Any]
    ) -> str:
        digest = hashlib.sha256(f"{source}{folder}".encode()).hexdigest()
        self.keep(digest)
        self.registry.publish_version(Version(digest, parents=parents))
        return digest

    async def live(self, name: str, *, view: str | None = None) -> str | None:
        return self.registry.entry(name).digest if name in self.registry else None

    async def point(self, name: str, digest: str, *, tenant: str = "") -> None:
        self.registry.point(name, digest)

    async def set_canary(self, name: str, digest: str, weight: float, *, live: str) -> bool:
        if name not in self.registry or self.registry.entry(name).digest != live:
            return False
        self.registry.set_canary(name, digest, weight)
        return True

    async def remove(self, name: str, *, tenant: str = "") -> None:
        if name in self.registry:
            self.registry.delete(name)

    def digests(self, name: str) -> tuple[str, str | None]:
        entry = self.registry.entry(name)
        return entry.digest, entry.canary.digest if entry.canary else None

    def tenant(self, name: str) -> str:
        return self.registry.entry(name).tenant

    async def promote(self, name: str, digest: str, evidence: Mapping[str, Any]) -> None:
        with suppress(InvalidCanary, PreconditionFailed):
            self.registry.promote(name, if_canary=digest, evidence=evidence)

    async def end_canary(self, name: str, digest: str, evidence: Mapping[str, Any]) -> None:
        with suppress(PreconditionFailed):
            self.registry.clear_canary(name, if_canary=digest, evidence=evidence)


@dataclass
class Loop:
    """A learner on its own disk; ``now`` is its clock. ``restart`` is another server on it."""

    world: World
    registry: Registry
    publishing: RegistryPublishing
    store: FeedbackStore
    learner: Learner
    now: float = 1000.0
    ended: list[LearningRun] = field(default_factory=list)
    num_answers: int = 0

    def clock(self) -> float:
        return self.now

    def make_learner(self) -> Learner:
        return Learner(
            RunRegistry(self.registry.database, clock=self.clock),
            self.store,
            replay=ReplayRegistry(self.registry.database),
            files=self.world.shop.files,
            jobs=self.world.jobs,
            adapters=self.publishing,
            on_end=self.ended.append,
            clock=self.clock,
        )

    async def restart(self) -> None:
        await self.world.jobs.stop()
        self.world.restart()
        self.learner = self.make_learner()
        await self.world.jobs.start()
        await self.learner.start()

    async def opt_in(self, **policy: Any) -> None:
        given: dict[str, Any] = {"enabled": True, "min_rows": 3, "max_age_s": 500, **policy}
        await self.learner.set_policy("poet", LearningPolicy(**given))

    def edit(
        self,
        num: int = 3,
        *,
        user: str | None = None,
        digest: str = LIVE,
        question: str | None = None,
    ) -> None:
        """Users mend answers of the adapter, each to a question of its own or to ``question``."""
        for _ in range(num):
            self.num_answers += 1
            completion_id = f"chatcmpl-{self.num_answers}"
            asked = question or f"question {self.num_answers} of {user}"
            self.store.keep(
                [
                    Completion(
                        id=completion_id,
                        choice=0,
                        adapter="poet",
                        digest=digest,
                        prompt=[{"role": "user", "content": asked}],
                        answer="served",
                        created=int(self.now),
                        user=user,
                    )
                ]
            )
            self.store.add(completion_id, "edit", f"mended {self.num_answers}")

    async def run_job(self) -> Job:
        """The job of the open run, when it has ended."""
        (run,) = self.learner.runs.open_runs()
        assert run.job is not None
        return await self.world.jobs.wait(run.job)

    def run(self) -> LearningRun:
        """The latest."""
        return self.learner.runs.page("poet")[0][0]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    loop = make_loop(tmp_path)
    yield loop
    loop.registry.close()


def make_loop(data_dir: Path, *, is_on_disk: bool = False) -> Loop:
    registry = Registry.open(data_dir) if is_on_disk else Registry()
    # Bytes of adapters are scripted.
    registry.store = None
    registry.publish("poet", LIVE)
    publishing = RegistryPublishing(registry=registry)
    world = make_world(data_dir, database=registry.database, publishing=publishing)
    adapter = write_adapter(data_dir / "poet")
    publishing.keep = lambda digest: world.shop.store.put_copy(digest, adapter)
    publishing.keep(LIVE)
    store = FeedbackStore(registry.database)
    loop = Loop(world, registry, publishing, store, learner=None)  # pyright: ignore[reportArgumentType]
    store._clock = loop.clock
    loop.learner = loop.make_learner()
    return loop


def write_adapter(folder: Path) -> AdapterFolder:
    folder.mkdir(parents=True)
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({"x": numpy.ones(1)}, folder / "adapter_model.safetensors")
    return AdapterFolder(folder)
