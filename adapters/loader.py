"""Reads versions in background threads. The engine's loop starts reads and collects them."""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from multiflora.kernels.single_thread import compute_alone

from .error import AdapterRejected
from .histogram import WAIT_SECONDS, Histogram
from .version_reader import HostVersion, PlannedVersion, Reader

logger = logging.getLogger(__name__)

# Two at least, so that a slow version holds up no other. Beyond the processors that the engine's
# loop leaves, more threads keep the loop waiting for the interpreter's lock and load no faster.
_NUM_THREADS: Final = max(2, min(3, (os.cpu_count() or 1) - 1))
_LARGE_BYTES: Final = 64 << 20
_NICENESS: Final = 10

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


@dataclass(frozen=True, slots=True)
class Finished(Generic[Outcome]):
    """One finished piece of work; an ``AdapterRejected`` where it failed."""

    digest: str
    outcome: Outcome | AdapterRejected


@dataclass(frozen=True, slots=True)
class _Timed(Generic[Outcome]):
    """What a thread made, and the seconds that it took, without the wait for the thread."""

    outcome: Outcome
    seconds: float


class Loader:
    """Two lanes: versions above ``large_bytes``, and those for which the base's weights are read,
    wait for each other, never small ones for them.

    A slow small version occupies one of ``num_threads``.
    """

    def __init__(
        self, reader: Reader, *, num_threads: int = _NUM_THREADS, large_bytes: int = _LARGE_BYTES
    ) -> None:
        self._reader = reader
        self._large_bytes = large_bytes
        self._small_lane = _make_lane(num_threads, "adapter-load")
        self._large_lane = _make_lane(1, "adapter-load-large")
        self._plans: dict[str, Future[_Timed[PlannedVersion]]] = {}
        self._reads: dict[str, Future[_Timed[HostVersion]]] = {}
        # Seconds of each stage that succeeded.
        self.seconds = {stage: Histogram(WAIT_SECONDS) for stage in ("plan", "read")}
        self._large: set[str] = set()

    def __contains__(self, digest: str) -> bool:
        return digest in self._plans or digest in self._reads

    def __len__(self) -> int:
        return len(self._plans) + len(self._reads)

    @property
    def num_small(self) -> int:
        """Work in the lane of small versions, and of those of unknown size."""
        return len(self._plans) + len(self._reads) - len(self._large)

    def has_lane_for(self, planned: PlannedVersion) -> bool:
        """False while another large version is read: a queued one would only occupy memory."""
        return not self._is_large(planned) or not self._large

    def plan(self, digest: str) -> None:
        """Begin to read what ``digest`` will take."""
        assert digest not in self
        self._plans[digest] = self._small_lane.submit(_timed, self._reader.plan, digest)

    def read(self, planned: PlannedVersion) -> None:
        """Begin to read a version whose host memory is reserved."""
        assert planned.digest not in self
        is_large = self._is_large(planned)
        lane = self._large_lane if is_large else self._small_lane
        self._reads[planned.digest] = lane.submit(_timed, self._reader.read, planned)
        if is_large:
            self._large.add(planned.digest)

    def _is_large(self, planned: PlannedVersion) -> bool:
        return planned.num_bytes > self._large_bytes or planned.layout.needs_norms

    def take_plans(self) -> Iterator[Finished[PlannedVersion]]:
        """One after the other, as ``take_reads``."""
        return _take(self._plans, self.seconds["plan"])

    def take_reads(self) -> Iterator[Finished[HostVersion]]:
        """One after the other: what is not asked for stays for the next time."""
        for finished in _take(self._reads, self.seconds["read"]):
            self._large.discard(finished.digest)
            yield finished

    def close(self) -> None:
        for lane in (self._small_lane, self._large_lane):
            lane.shutdown(wait=True, cancel_futures=True)


def _make_lane(num_threads: int, name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, thread_name_prefix=name, initializer=_yield_to_steps)


def _yield_to_steps() -> None:
    """Give this thread one processor, and less of a busy one than the engine's loop gets."""
    compute_alone()
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def _timed(work: Callable[[Item], Outcome], item: Item) -> _Timed[Outcome]:
    started = time.perf_counter()
    return _Timed(work(item), time.perf_counter() - started)


def _take(
    work: dict[str, Future[_Timed[Outcome]]], seconds: Histogram
) -> Iterator[Finished[Outcome]]:
    for digest in [digest for digest, future in work.items() if future.done()]:
        yield _finish(digest, work.pop(digest), seconds)


def _finish(digest: str, future: Future[_Timed[Outcome]], seconds: Histogram) -> Finished[Outcome]:
    try:
        timed = future.result()
        seconds.observe(timed.seconds)
        return Finished(digest, timed.outcome)
    except AdapterRejected as error:
        return Finished(digest, error)
    except Exception as error:  # the loader thread's outer edge
        logger.exception("version %s could not be read", digest[:12])
        return Finished(digest, AdapterRejected("load_failed", _public_message(digest, error)))


def _public_message(digest: str, error: Exception) -> str:
    """What went wrong without what may hold paths or addresses."""
    reason = error.strerror if isinstance(error, OSError) else None
    return f"version {digest[:12]} could not be read: {reason or type(error).__name__}; try again"
