"""What a server and its children hold of memory and use of processors while it is watched."""

import threading
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

import psutil

from .server_process import ServerProcess

_SECONDS: Final = 0.2


class MemoryWatch:
    """Samples the memory of a tree of processes, summed, from its start on.

    Memory is what is resident: pages that two processes of a tree share count for both, and those
    of mapped files count as well.
    """

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._peaks = {"": 0}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._sample()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._thread.join()

    def begin(self, name: str) -> None:
        """Look for a peak of this name from here on, until ``end`` of it."""
        with self._lock:
            self._peaks[name] = 0
        self._sample()

    def end(self, name: str) -> int:
        """MiB at most since ``begin`` of this name."""
        self._sample()
        with self._lock:
            return round(self._peaks.pop(name) / 2**20)

    @property
    def peak_mib(self) -> int:
        """At most since the start."""
        with self._lock:
            return round(self._peaks[""] / 2**20)

    def cpu_seconds(self) -> float:
        """Of all processes of the tree that are alive."""
        return sum(_cpu_seconds(process) for process in self._server.tree())

    def _watch(self) -> None:
        while not self._is_over.wait(_SECONDS):
            self._sample()

    def _sample(self) -> None:
        size = sum(_resident(process) for process in self._server.tree())
        with self._lock:
            self._peaks = {name: max(peak, size) for name, peak in self._peaks.items()}


def _resident(process: psutil.Process) -> int:
    with suppress(psutil.NoSuchProcess):
        return process.memory_info().rss
    return 0


def _cpu_seconds(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess):
        spent = process.cpu_times()
        return spent.user + spent.system
    return 0.0
