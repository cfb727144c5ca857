"""Puts the continual loop together: where feedback lies, the jobs that learn, and the names."""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from multiflora.adapters.error import (
    InvalidCanary,
    PreconditionFailed,
    UnknownName,
)
from multiflora.adapters.registry import Registry
from multiflora.engine.training.data.file_registry import FileRegistry
from multiflora.engine.training.feedback.feedback_store import FeedbackStore
from multiflora.engine.training.jobs.training_jobs import TrainingJobs
from multiflora.engine.training.learning.learner import Learner
from multiflora.engine.training.learning.replay_registry import ReplayRegistry
from multiflora.engine.training.learning.run_registry import RunRegistry

from .metrics import Metrics
from .pinning import Pinning

logger = logging.getLogger(__name__)

TICK_SECONDS: Final = 1.0


class CanaryMoves:
    """Ends canaries, one way or the other, where nobody else did."""

    def __init__(self, registry: Registry, pinning: Pinning, metrics: Metrics) -> None:
        self._registry = registry
        self._pinning = pinning
        self._metrics = metrics

    def digests(self, name: str) -> tuple[str, str | None]:
        """The live version and the canary's. Raises ``UnknownName``."""
        entry = self._registry.entry(name)
        return entry.digest, entry.canary.digest if entry.canary else None

    def tenant(self, name: str) -> str:
        """Raises ``UnknownName``."""
        return self._registry.entry(name).tenant

    async def promote(self, name: str, digest: str, evidence: Mapping[str, Any]) -> None:
        await self._move("promote", self._registry.promote, name, digest, evidence)

    async def end_canary(self, name: str, digest: str, evidence: Mapping[str, Any]) -> None:
        await self._move("clear_canary", self._registry.clear_canary, name, digest, evidence)

    async def _move(
        self, action: str, move: Any, name: str, digest: str, evidence: Mapping[str, Any]
    ) -> None:
        with suppress(UnknownName, InvalidCanary, PreconditionFailed):
            await asyncio.to_thread(move, name, if_canary=digest, evidence=evidence)
            self._metrics.adapter_change(action)
        await self._pinning.reconcile()


def make_learner(
    registry: Registry,
    *,
    files: FileRegistry,
    jobs: TrainingJobs,
    pinning: Pinning,
    metrics: Metrics,
) -> Learner:
    """The loop of all adapters; nothing runs before ``Learner.start``."""
    return Learner(
        RunRegistry(registry.database),
        FeedbackStore(registry.database),
        replay=ReplayRegistry(registry.database),
        files=files,
        jobs=jobs,
        adapters=CanaryMoves(registry, pinning, metrics),
        on_end=lambda run: metrics.learning_run(run.adapter, run.status),
    )


async def keep_learning(learner: Learner, *, seconds: float = TICK_SECONDS) -> None:
    """Start the loop, and let it look around until it is cancelled."""
    is_started = False
    try:
        while True:
            try:
                if not is_started:
                    await learner.start()
                    is_started = True
                await learner.tick()
            except Exception:
                logger.exception("the continual loop stands still and is tried again")
            await asyncio.sleep(seconds)
    finally:
        await learner.inbox.flush()
