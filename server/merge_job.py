"""Merges that go on after their request was answered, by id."""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from multiflora.adapters.error import AdapterRejected, RegistryError
from multiflora.engine.errors import EngineError

from .errors import UnknownJob, http_error
from .schemas.merge import JobStatus, job_object

logger = logging.getLogger(__name__)

_MAX_KEPT: Final = 100


@dataclass(slots=True)
class MergeJob:
    """``error`` and ``adapter`` are what a request that waited would have been answered."""

    name: str
    tenant: str = ""
    id: str = field(default_factory=lambda: f"merge-{secrets.token_hex(12)}")
    status: JobStatus = "queued"
    progress: float = 0.0
    created: int = field(default_factory=lambda: int(time.time()))
    error: dict[str, Any] | None = None
    adapter: dict[str, Any] | None = None

    def tell(self, progress: float) -> None:
        """Note progress; from any thread."""
        self.status, self.progress = "running", progress

    def shown(self) -> dict[str, Any]:
        return job_object(
            self.id,
            name=self.name,
            status=self.status,
            progress=self.progress,
            created=self.created,
            error=self.error,
            adapter=self.adapter,
        )


class MergeJobs:
    """The last jobs of this server; a restart forgets them, and publishes nothing half."""

    def __init__(self) -> None:
        self._jobs: dict[str, MergeJob] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __getitem__(self, job_id: str) -> MergeJob:
        """Raises ``UnknownJob``."""
        if job_id not in self._jobs:
            raise self.not_found(job_id)
        return self._jobs[job_id]

    def not_found(self, job_id: str) -> UnknownJob:
        return UnknownJob(f"no merge has the id {job_id[:64]!r}; a restart forgets them")

    def start(self, job: MergeJob, work: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        """Go on with ``work``, which answers the adapter."""
        self._jobs[job.id] = job
        self._forget_oldest()
        task = asyncio.create_task(_run(job, work))
        # The event loop itself holds tasks weakly.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _forget_oldest(self) -> None:
        ended = [job for job in self._jobs.values() if job.status in ("succeeded", "failed")]
        for job in ended[: max(0, len(self._jobs) - _MAX_KEPT)]:
            del self._jobs[job.id]


async def _run(job: MergeJob, work: Callable[[], Awaitable[dict[str, Any]]]) -> None:
    try:
        job.adapter = await work()
        job.status, job.progress = "succeeded", 1.0
    except Exception as error:
        if not isinstance(error, EngineError | AdapterRejected | RegistryError):
            logger.exception("the merge %s failed", job.id)
        job.error = http_error(error).body()["error"]
        job.status = "failed"
