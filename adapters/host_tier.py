"""Versions in host memory: on their way in, or kept after they left the device. No tensors."""

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Generic, TypeVar

from .eviction import choose_victims

Content = TypeVar("Content")


@dataclass(slots=True)
class _Entry(Generic[Content]):
    num_bytes: int
    content: Content | None = None
    is_held: bool = False


class HostTier(Generic[Content]):
    """Contents by digest within ``capacity_bytes``, least recently used first.

    Bytes are reserved before they are allocated. What is being filled or held does not leave.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self.num_evictions = 0
        self._entries: OrderedDict[str, _Entry[Content]] = OrderedDict()

    def __contains__(self, digest: str) -> bool:
        """Whether the version is complete here."""
        return self.get(digest) is not None

    def get(self, digest: str) -> Content | None:
        entry = self._entries.get(digest)
        return entry.content if entry else None

    def digests(self) -> tuple[str, ...]:
        return tuple(d for d, entry in self._entries.items() if entry.content is not None)

    def reserve(self, digest: str, num_bytes: int, *, keep: Collection[str] = ()) -> bool:
        """Set ``num_bytes`` aside, evicting others but those in ``keep``; False without room."""
        assert digest not in self._entries
        victims = self._choose_victims(num_bytes, keep)
        if victims is None:
            return False
        for victim in victims:
            self.drop(victim)
        self.num_evictions += len(victims)
        self._entries[digest] = _Entry(num_bytes)
        self.used_bytes += num_bytes
        return True

    def _choose_victims(self, num_bytes: int, keep: Collection[str]) -> tuple[str, ...] | None:
        missing = self.used_bytes + num_bytes - self.capacity_bytes
        if missing <= 0:
            return ()
        idle = (
            (digest, entry.num_bytes)
            for digest, entry in self._entries.items()
            if entry.content is not None and not entry.is_held and digest not in keep
        )
        return choose_victims(idle, missing)

    def fill(self, digest: str, content: Content) -> None:
        """Complete a reservation."""
        entry = self._entries[digest]
        assert entry.content is None
        entry.content = content

    def drop(self, digest: str) -> None:
        """Give up an entry or a reservation; nothing happens if there is none."""
        entry = self._entries.pop(digest, None)
        if entry:
            assert not entry.is_held
            self.used_bytes -= entry.num_bytes

    def hold(self, digest: str, is_held: bool) -> None:
        """Keep an entry in place while it is copied from."""
        self._entries[digest].is_held = is_held

    def touch(self, digest: str) -> None:
        if digest in self._entries:
            self._entries.move_to_end(digest)
