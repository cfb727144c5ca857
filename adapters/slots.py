"""Which version sits in which slot of device memory. Pure bookkeeping, no tensors.

A slot is taken while its version is copied in, counted by leases while requests run on it, and
reused only when no lease and no pin is left; ``eviction`` says which idle version goes first.
Versions in borrowed memory count apart: they neither fill the budget nor make room in it.
"""

from collections import Counter, OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum, StrEnum

from .eviction import choose_victims


class Readiness(Enum):
    """Whether a request's versions can be used in the next step."""

    READY = "ready"
    LOADING = "loading"
    NO_ROOM = "no_room"


class Cause(StrEnum):
    """Why a version had to leave a memory: for another one, or for the KV cache that lent it."""

    ROOM = "room"
    KV_CACHE = "kv_cache"


@dataclass(slots=True)
class _Occupant:
    slot: int
    num_bytes: int
    leases: int = 0
    is_arriving: bool = False
    is_borrowed: bool = False


@dataclass(frozen=True, slots=True)
class Placement:
    """A slot for a version, and the idle versions that had to leave for it."""

    slot: int
    evicted: tuple[str, ...]
    freed_slots: tuple[int, ...]


class SlotTable:
    """Slots within a budget of ``capacity_bytes``."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self.borrowed_bytes = 0
        self.evictions: Counter[Cause] = Counter()
        self._occupants: OrderedDict[str, _Occupant] = OrderedDict()  # least recently used first
        self._pins: dict[str, int] = {}
        self._free_slots: list[int] = []
        self._num_slots = 0

    def __contains__(self, digest: str) -> bool:
        return digest in self._occupants

    def slot_of(self, digest: str) -> int:
        return self._occupants[digest].slot

    def bytes_of(self, digest: str) -> int:
        return self._occupants[digest].num_bytes

    def digests(self) -> tuple[str, ...]:
        return tuple(self._occupants)

    @property
    def num_evictions(self) -> int:
        return self.evictions.total()

    def sizes(self) -> dict[str, int]:
        """Bytes of every version that has a slot."""
        return {digest: occupant.num_bytes for digest, occupant in self._occupants.items()}

    @property
    def num_leases(self) -> int:
        return sum(occupant.leases for occupant in self._occupants.values())

    @property
    def pinned_bytes(self) -> int:
        """What pins take away from everybody else, whether their versions have arrived or not."""
        return sum(self._pins.values())

    @property
    def pinned(self) -> tuple[str, ...]:
        return tuple(self._pins)

    def pin(self, digest: str, num_bytes: int) -> bool:
        """Keep ``digest`` from being evicted, now or once it arrives; False if pins fill it all."""
        if digest not in self._pins and self.pinned_bytes + num_bytes > self.capacity_bytes:
            return False
        self._pins[digest] = num_bytes
        return True

    def unpin(self, digest: str) -> None:
        self._pins.pop(digest, None)

    def place(self, digest: str, num_bytes: int, *, keep: Collection[str] = ()) -> Placement | None:
        """Give ``digest`` a slot, evicting idle versions; None while the others leave no room.

        Versions in ``keep`` stay too: the other parents of a blend must not make room for this one.
        """
        assert digest not in self._occupants
        evicted = self._choose_victims(num_bytes, keep)
        if evicted is None:
            return None
        freed = tuple(self._occupants[victim].slot for victim in evicted)
        for victim in evicted:
            self.remove(victim)
        self.evictions[Cause.ROOM] += len(evicted)
        slot = self._take_slot()
        self._occupants[digest] = _Occupant(slot, num_bytes)
        self.used_bytes += num_bytes
        return Placement(slot, evicted, freed)

    def has_room(self, num_bytes: int) -> bool:
        """Whether nobody has to leave for so many bytes."""
        return self.used_bytes + num_bytes <= self.capacity_bytes

    def place_borrowed(self, digest: str, num_bytes: int) -> None:
        """Give ``digest`` a slot outside the budget."""
        assert digest not in self._occupants
        self._occupants[digest] = _Occupant(self._take_slot(), num_bytes, is_borrowed=True)
        self.borrowed_bytes += num_bytes

    def is_borrowed(self, digest: str) -> bool:
        return self._occupants[digest].is_borrowed

    def idle_borrowed(self, *, keep: Collection[str] = ()) -> list[str]:
        """What may leave borrowed memory, least recently used first."""
        borrowed = (d for d, occupant in self._occupants.items() if occupant.is_borrowed)
        return [digest for digest in borrowed if digest not in keep and self.can_leave(digest)]

    def _choose_victims(self, num_bytes: int, keep: Collection[str]) -> tuple[str, ...] | None:
        missing = self.used_bytes + num_bytes - self.capacity_bytes
        if missing <= 0:
            return ()
        idle = (
            (digest, occupant.num_bytes)
            for digest, occupant in self._occupants.items()
            if not occupant.is_borrowed and digest not in keep and self.can_leave(digest)
        )
        return choose_victims(idle, missing)

    def can_leave(self, digest: str) -> bool:
        """Whether neither a lease nor a pin nor a copy under way needs the version's memory."""
        occupant = self._occupants[digest]
        return not occupant.leases and not occupant.is_arriving and digest not in self._pins

    def set_arriving(self, digest: str, is_arriving: bool) -> None:
        """Mark a version whose bytes are on their way: nobody may use or move it."""
        self._occupants[digest].is_arriving = is_arriving

    def is_ready(self, digest: str) -> bool:
        occupant = self._occupants.get(digest)
        return occupant is not None and not occupant.is_arriving

    def _take_slot(self) -> int:
        if self._free_slots:
            return self._free_slots.pop()
        self._num_slots += 1
        return self._num_slots - 1

    def remove(self, digest: str) -> None:
        occupant = self._occupants.pop(digest)
        assert not occupant.leases
        assert not occupant.is_arriving
        if occupant.is_borrowed:
            self.borrowed_bytes -= occupant.num_bytes
        else:
            self.used_bytes -= occupant.num_bytes
        self._free_slots.append(occupant.slot)

    def lease(self, digest: str) -> None:
        assert self.is_ready(digest)
        self._occupants[digest].leases += 1
        self._occupants.move_to_end(digest)

    def release(self, digest: str) -> None:
        occupant = self._occupants[digest]
        assert occupant.leases > 0
        occupant.leases -= 1
