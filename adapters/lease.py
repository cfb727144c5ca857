"""What an admitted request holds on the version that it started with."""

import threading
from collections import Counter
from types import TracebackType
from typing import Self


class Lease:
    """Holds one version for one request. Releasing twice, from any thread, is harmless."""

    def __init__(self, table: "LeaseTable", name: str, digest: str, *, is_canary: bool) -> None:
        self.name = name
        self.digest = digest
        self.is_canary = is_canary
        self.is_released = False
        self._table = table

    def release(self) -> None:
        self._table.release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class LeaseTable:
    """Leases by digest. ``take`` and ``count`` belong under ``lock``, which the owner shares."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._counts: Counter[str] = Counter()

    def take(self, name: str, digest: str, *, is_canary: bool) -> Lease:
        self._counts[digest] += 1
        return Lease(self, name, digest, is_canary=is_canary)

    def counts(self) -> dict[str, int]:
        """Digests with at least one lease."""
        return dict(self._counts)

    def release(self, lease: Lease) -> None:
        with self._lock:
            if lease.is_released:
                return
            lease.is_released = True
            self._counts[lease.digest] -= 1
            if not self._counts[lease.digest]:
                del self._counts[lease.digest]
