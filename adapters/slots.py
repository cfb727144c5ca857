"""Which version sits in which slot of device memory. Pure bookkeeping, no tensors.

A slot is taken while its version loads, counted by leases while requests run on it, and reused only
when no lease is left; the least recently used idle version goes first.
"""

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum


class Readiness(Enum):
    """Whether a request's versions can be used in the next step."""

    READY = "ready"
    LOADING = "loading"
    NO_ROOM = "no_room"


@dataclass(slots=True)
class _Occupant:
    slot: int
    num_bytes: int
    leases: int = 0


@dataclass(frozen=True, slots=True)
class Placement:
    """A slot for a version, and the idle versions that had to leave for it."""

    slot: int
    evicted: tuple[str, ...]


class SlotTable:
    """Slots within a budget of ``capacity_bytes``."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self._occupants: OrderedDict[str, _Occupant] = OrderedDict()  # least recently used first
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
    def num_leases(self) -> int:
        return sum(occupant.leases for occupant in self._occupants.values())

    def place(self, digest: str, num_bytes: int, *, keep: Collection[str] = ()) -> Placement | None:
        """Give ``digest`` a slot, evicting idle versions; None while leases leave no room.

        Versions in ``keep`` stay too: the other parents of a blend must not make room for this one.
        """
        assert digest not in self._occupants
        evicted = self._choose_victims(num_bytes, keep)
        if evicted is None:
            return None
        for victim in evicted:
            self.remove(victim)
        slot = self._free_slots.pop() if self._free_slots else self._new_slot()
        self._occupants[digest] = _Occupant(slot, num_bytes)
        self.used_bytes += num_bytes
        return Placement(slot, evicted)

    def _choose_victims(self, num_bytes: int, keep: Collection[str]) -> tuple[str, ...] | None:
        missing = self.used_bytes + num_bytes - self.capacity_bytes
        victims = []
        for digest, occupant in self._occupants.items():
            if missing <= 0:
                break
            if not occupant.leases and digest not in keep:
                victims.append(digest)
                missing -= occupant.num_bytes
        return tuple(victims) if missing <= 0 else None

    def _new_slot(self) -> int:
        self._num_slots += 1
        return self._num_slots - 1

    def remove(self, digest: str) -> None:
        occupant = self._occupants.pop(digest)
        assert not occupant.leases
        self.used_bytes -= occupant.num_bytes
        self._free_slots.append(occupant.slot)

    def lease(self, digest: str) -> None:
        self._occupants[digest].leases += 1
        self._occupants.move_to_end(digest)

    def release(self, digest: str) -> None:
        occupant = self._occupants[digest]
        assert occupant.leases > 0
        occupant.leases -= 1

    def is_idle(self, digest: str) -> bool:
        return not self._occupants[digest].leases
