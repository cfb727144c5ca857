"""Versions in device memory: their slots, their bytes on the way in, and the kernels' tables."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from multiflora.kernels.ops import LoraTables

from .adjustment_table import AdjustmentTable
from .flat_buffer import adjustment_views, factor_views
from .histogram import WAIT_SECONDS, Histogram
from .loan import Lender, Loan
from .slots import Cause, SlotTable
from .transfer import Arrival, Transfer
from .version_reader import HostVersion


@dataclass(frozen=True, slots=True)
class _Copy:
    """A version's bytes under way since ``started``, by the performance counter."""

    version: HostVersion
    arrival: Arrival
    started: float


@dataclass(frozen=True, slots=True)
class Arriving:
    """A version on its way into its slot.

    ``evicted`` are the versions that left for it, with their host memory where that was shared;
    ``is_copy`` if its own host memory stays its own.
    """

    is_copy: bool
    evicted: Mapping[str, HostVersion | None] = field(default_factory=dict)


class DeviceTier:
    """Places host versions in slots; a version can be used once its copy is complete.

    A version that finds the budget full goes to memory that ``lender`` does not need, before
    another has to leave; if none can leave, even to memory that the lender would rather keep.
    """

    def __init__(
        self, tables: LoraTables, transfer: Transfer, capacity_bytes: int, lender: Lender
    ) -> None:
        self.slots = SlotTable(capacity_bytes)
        self.adjustments = AdjustmentTable()
        self._tables = tables
        self._transfer = transfer
        self._lender = lender
        self._loans: dict[str, Loan] = {}
        self._copies: dict[str, _Copy] = {}
        self.copy_seconds = Histogram(WAIT_SECONDS)
        # Ranks of all slices of a resident version, and those that its kernels compute.
        self.ranks: dict[str, tuple[int, int]] = {}
        # Only where memory is shared: what an eviction gives back to the host tier.
        self._shared: dict[str, HostVersion] = {}

    @property
    def is_copying(self) -> bool:
        return bool(self._copies)

    def place(
        self, digest: str, version: HostVersion, *, keep: Collection[str], may_borrow: bool
    ) -> Arriving | None:
        """Give ``version`` a slot and begin its copy; None without room."""
        if not may_borrow or self.slots.has_room(version.num_bytes):
            return self._place_own(digest, version, keep)
        return (
            self._place_borrowed(digest, version, is_urgent=False)
            or self._place_own(digest, version, keep)
            or self._place_borrowed(digest, version, is_urgent=True)
            or self._replace_borrowed(digest, version, keep)
        )

    def _place_own(
        self, digest: str, version: HostVersion, keep: Collection[str]
    ) -> Arriving | None:
        placement = self.slots.place(digest, version.num_bytes, keep=keep)
        if placement is None:
            return None
        # The tables keep what they name alive: cleared first, the memory can be used again.
        for slot in placement.freed_slots:
            self._clear(slot)
        evicted = {victim: self._shared.pop(victim, None) for victim in placement.evicted}
        for victim in evicted:
            self.ranks.pop(victim, None)
        self._start(digest, version)
        return Arriving(not self._transfer.shares_memory, evicted)

    def _place_borrowed(
        self, digest: str, version: HostVersion, *, is_urgent: bool
    ) -> Arriving | None:
        loan = self._lender.lend(version.buffer.numel(), is_urgent=is_urgent)
        if loan is None:
            return None
        self._loans[digest] = loan
        self.slots.place_borrowed(digest, version.num_bytes)
        self._start(digest, version)
        return Arriving(is_copy=True)

    def _replace_borrowed(
        self, digest: str, version: HostVersion, keep: Collection[str]
    ) -> Arriving | None:
        """Take the place of an idle version that borrowed enough, the one used longest ago."""
        for victim in self.slots.idle_borrowed(keep=keep):
            if self.slots.bytes_of(victim) >= version.num_bytes:
                self.remove(victim)
                self.slots.evictions[Cause.ROOM] += 1
                return self._place_borrowed(digest, version, is_urgent=True)
        return None

    def _start(self, digest: str, version: HostVersion) -> None:
        self.slots.set_arriving(digest, True)
        loan = self._loans.get(digest)
        started = time.perf_counter()
        arrival = self._transfer.start(version.buffer, into=loan.buffer if loan else None)
        copy = _Copy(version, arrival, started)
        if arrival.is_complete():
            self._open(digest, copy)
        else:
            self._copies[digest] = copy

    def take_arrivals(self) -> Iterator[str]:
        """Make completed copies usable, one after the other, and give their digests."""
        for digest in [d for d, copy in self._copies.items() if copy.arrival.is_complete()]:
            self._open(digest, self._copies.pop(digest))
            yield digest

    def _open(self, digest: str, copy: _Copy) -> None:
        self.copy_seconds.observe(time.perf_counter() - copy.started)
        version, buffer = copy.version, copy.arrival.buffer
        slot = self.slots.slot_of(digest)
        self._tables.write(slot, factor_views(version.layout, buffer))
        self.adjustments.write(slot, adjustment_views(version.layout, buffer))
        self.ranks[digest] = _ranks(version.layout.ranks, self._tables.tile[1])
        self.slots.set_arriving(digest, False)
        if self._transfer.shares_memory and digest not in self._loans:
            self._shared[digest] = version

    def call_in(self, *, keep: Collection[str]) -> str | None:
        """Give the memory of one idle version back to its lender; returns which, if any."""
        for digest in self.slots.idle_borrowed(keep=keep):
            self.remove(digest, is_called_in=True)
            self.slots.evictions[Cause.KV_CACHE] += 1
            return digest
        return None

    def remove(self, digest: str, *, is_called_in: bool = False) -> None:
        """Free the memory of a version that nobody uses."""
        self._clear(self.slots.slot_of(digest))
        self.slots.remove(digest)
        self.ranks.pop(digest, None)
        self._shared.pop(digest, None)
        if loan := self._loans.pop(digest, None):
            self._lender.take_back(loan, is_called_in=is_called_in)

    def _clear(self, slot: int) -> None:
        self._tables.clear(slot)
        self.adjustments.clear(slot)


def _ranks(ranks: Sequence[int], step: int) -> tuple[int, int]:
    return sum(ranks), sum(-(-rank // step) * step for rank in ranks)
