"""Work that goes on after its request was answered, by id."""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from multiflora.adapters.error import AdapterRejected, RegistryError
from multiflora.engine.errors import EngineError
from multiflora.engine.training.jobs.error import JobOver

from .cancellation import Cancellation, Cancelled
from .errors import UnknownJob, http_error
from .refusal import QueueFull

logger = logging.getLogger(__name__)

JobStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]
ENDED: Final = ("succeeded", "failed", "cancelled")
_MAX_KEPT: Final = 100
_RETRY_SECONDS: Final = 10


@dataclass(slots=True)
class BackgroundJob:
    """``error`` and ``result`` are what a request that waited would have been answered.

    ``kind`` is the noun that ids begin with.
    """

    kind: str
    name: str
    tenant: str = ""
    id: str = ""
    status: JobStatus = "queued"
    progress: float = 0.0
    created: int = field(default_factory=lambda: int(time.time()))
    error: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    cancellation: Cancellation = field(default_factory=Cancellation)

    def __post_init__(self) -> None:
        self.id = f"{self.kind}-{secrets.token_hex(12)}"

    def tell(self, progress: float) -> None:
        """Note progress; from any thread."""
        self.status, self.progress = "running", progress


class BackgroundJobs:
    """The last jobs of this server; a restart forgets them, and publishes nothing half."""

    def __init__(self) -> None:
        self._jobs: dict[str, BackgroundJob] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def find(self, job_id: str, kind: str) -> BackgroundJob:
        """Raises ``UnknownJob``."""
        job = self._jobs.get(job_id)
        if job is None or job.kind != kind:
            raise self.not_found(job_id, kind)
        return job

    def not_found(self, job_id: str, kind: str) -> UnknownJob:
        return UnknownJob(f"no {kind} has the id {job_id[:64]!r}; a restart forgets them")

    def cancel(self, job_id: str, kind: str) -> BackgroundJob:
        """End work whose result is not being published yet; its status tells when it has ended.

        Raises ``UnknownJob`` and ``JobOver``.
        """
        job = self.find(job_id, kind)
        if job.status in ENDED or not job.cancellation.set():
            raise JobOver(f"{job_id} is {job.status} and cannot be cancelled any more")
        return job

    def start(
        self,
        job: BackgroundJob,
        work: Callable[[], Awaitable[dict[str, Any]]],
        *,
        at_once: int | None = None,
    ) -> None:
        """Go on with ``work``, which answers the result.

        Raises ``QueueFull`` if the tenant has ``at_once`` jobs of the kind that have not ended.
        """
        like = ((one.kind, one.tenant, one.status not in ENDED) for one in self._jobs.values())
        if (
            at_once is not None
            and sum(one == (job.kind, job.tenant, True) for one in like) >= at_once
        ):
            raise QueueFull(
                f"{at_once} {job.kind} jobs are running; try again when one has ended",
                retry_after_seconds=_RETRY_SECONDS,
            )
        self._jobs[job.id] = job
        self._forget_oldest()
        task = asyncio.create_task(_run(job, work))
        # The event loop itself holds tasks weakly.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _forget_oldest(self) -> None:
        ended = [job for job in self._jobs.values() if job.status in ENDED]
        for job in ended[: max(0, len(self._jobs) - _MAX_KEPT)]:
            del self._jobs[job.id]


async def _run(job: BackgroundJob, work: Callable[[], Awaitable[dict[str, Any]]]) -> None:
    try:
        job.result = await work()
        job.status, job.progress = "succeeded", 1.0
    except Cancelled:
        job.status = "cancelled"
    except Exception as error:
        if not isinstance(error, EngineError | AdapterRejected | RegistryError):
            logger.exception("%s failed", job.id)
        job.error = http_error(error).body()["error"]
        job.status = "failed"
