"""Names that clients put in ``model``, the versions they point at, and the leases on those."""

import threading
import time
from collections import Counter
from dataclasses import dataclass
from types import TracebackType
from typing import Self


@dataclass(frozen=True, slots=True)
class AdapterEntry:
    """A published name; ``created`` is a Unix time in seconds."""

    name: str
    digest: str
    created: int


class Lease:
    """Holds one version for one request. Releasing twice is harmless."""

    def __init__(self, registry: "Registry", name: str, digest: str) -> None:
        self.name = name
        self.digest = digest
        self._registry: Registry | None = registry

    def release(self) -> None:
        registry, self._registry = self._registry, None
        if registry is not None:
            registry._release(self.digest)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class Registry:
    """Resolves a name and takes the lease in one atomic step. Safe to call from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, AdapterEntry] = {}
        self._leases: Counter[str] = Counter()

    def publish(self, name: str, digest: str) -> None:
        """Point ``name`` at ``digest``; requests already running keep the version they hold."""
        with self._lock:
            self._entries[name] = AdapterEntry(name, digest, int(time.time()))

    def entries(self) -> tuple[AdapterEntry, ...]:
        with self._lock:
            return tuple(self._entries[name] for name in sorted(self._entries))

    def lease(self, name: str) -> Lease:
        """Take a lease on the version behind ``name``; raises ``KeyError`` if there is none."""
        with self._lock:
            digest = self._entries[name].digest
            self._leases[digest] += 1
        return Lease(self, name, digest)

    def num_leases(self, digest: str) -> int:
        with self._lock:
            return self._leases[digest]

    def _release(self, digest: str) -> None:
        with self._lock:
            assert self._leases[digest] > 0
            self._leases[digest] -= 1
            if not self._leases[digest]:
                del self._leases[digest]
