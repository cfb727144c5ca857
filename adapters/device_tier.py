"""Versions in device memory: their slots, their bytes on the way in, and the kernels' tables."""

from collections.abc import Collection

from multiflora.kernels.ops import LoraTables

from .adjustment_table import AdjustmentTable
from .flat_buffer import adjustment_views, factor_views
from .slots import SlotTable
from .transfer import Arrival, Transfer
from .version_reader import HostVersion


class DeviceTier:
    """Places host versions in slots; a version can be used once its copy is complete."""

    def __init__(self, tables: LoraTables, transfer: Transfer, capacity_bytes: int) -> None:
        self.slots = SlotTable(capacity_bytes)
        self.adjustments = AdjustmentTable()
        self._tables = tables
        self._transfer = transfer
        self._arrivals: dict[str, tuple[HostVersion, Arrival]] = {}
        # Only where memory is shared: what an eviction gives back to the host tier.
        self._shared: dict[str, HostVersion] = {}

    @property
    def shares_memory(self) -> bool:
        return self._transfer.shares_memory

    @property
    def is_copying(self) -> bool:
        return bool(self._arrivals)

    def place(
        self, digest: str, version: HostVersion, *, keep: Collection[str]
    ) -> dict[str, HostVersion | None] | None:
        """Give ``version`` a slot and begin its copy; None without room.

        Returns what was evicted for it, with the host memory where that was shared.
        """
        placement = self.slots.place(digest, version.num_bytes, keep=keep)
        if placement is None:
            return None
        # The tables keep what they name alive: cleared first, the memory can be used again.
        for slot in placement.freed_slots:
            self._clear(slot)
        evicted = {victim: self._shared.pop(victim, None) for victim in placement.evicted}
        self.slots.set_arriving(digest, True)
        arrival = self._transfer.start(version.buffer)
        if arrival.is_complete():
            self._open(digest, version, arrival)
        else:
            self._arrivals[digest] = (version, arrival)
        return evicted

    def take_arrivals(self) -> list[str]:
        """Make completed copies usable; returns their digests."""
        complete = [d for d, (_, arrival) in self._arrivals.items() if arrival.is_complete()]
        for digest in complete:
            self._open(digest, *self._arrivals.pop(digest))
        return complete

    def _open(self, digest: str, version: HostVersion, arrival: Arrival) -> None:
        slot = self.slots.slot_of(digest)
        self._tables.write(slot, factor_views(version.layout, arrival.buffer))
        self.adjustments.write(slot, adjustment_views(version.layout, arrival.buffer))
        self.slots.set_arriving(digest, False)
        if self.shares_memory:
            self._shared[digest] = version

    def remove(self, digest: str) -> None:
        """Free the memory of a version that nobody uses."""
        self._clear(self.slots.slot_of(digest))
        self.slots.remove(digest)
        self._shared.pop(digest, None)

    def _clear(self, slot: int) -> None:
        self._tables.clear(slot)
        self.adjustments.clear(slot)
