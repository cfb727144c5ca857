"""Where every version's factors lie in device memory: one table that kernels read by slot.

A graph captures the table's address, not its contents, so that versions come and go without a new
capture. The layout of an entry is in ``lora_epilogue``.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import LoraFactors
from .lora_epilogue import (
    ENTRY_A,
    ENTRY_B,
    ENTRY_FIELDS,
    ENTRY_FIRST_RANK,
    ENTRY_NUM_RANKS,
    ENTRY_RANK,
    ENTRY_SCALE,
    MAX_SLICES,
)

MAX_RANK = 256
# Rows of one shrink program: the smallest tile of a tensor core.
SHRINK_ROWS = 16
# Ranks of one dot: the least that a tensor core takes; smaller ranks are masked in registers.
RANK_BLOCK = 16
# Slots before the tables must move, which voids captured graphs: 16 MB for an 8B model.
_FIRST_CAPACITY = 1024


@dataclass(frozen=True, slots=True)
class ProjectionTable:
    """One projection's view of the tables; ``widths`` are the columns of its slices."""

    tables: "DeviceTables"
    index: int
    widths: tuple[int, ...]

    @property
    def entries(self) -> Tensor:
        """int64 [slots, 16], strided over projections."""
        return self.tables.entries[:, self.index]

    def slice_starts(self) -> tuple[int, int]:
        """First columns of the second and third slice; the total width where there is none."""
        total = sum(self.widths)
        second = self.widths[0]
        third = sum(self.widths[:2]) if len(self.widths) > 2 else total
        return second, third


class DeviceTables:
    """``LoraTables`` as int64 ``entries`` [slots, projections, 16] of addresses, ranks, scales."""

    max_rank = MAX_RANK
    tile = (SHRINK_ROWS, RANK_BLOCK)

    def __init__(self, widths: Sequence[Sequence[int]], device: torch.device) -> None:
        self._widths = tuple(tuple(slices) for slices in widths)
        assert all(len(slices) <= MAX_SLICES.value for slices in self._widths)
        self.entries = self._empty(_FIRST_CAPACITY, device)
        # The entries hold bare addresses: this is what keeps the tensors behind them alive.
        self._resident: dict[int, Mapping[int, LoraFactors]] = {}

    def _empty(self, num_slots: int, device: torch.device) -> Tensor:
        shape = (num_slots, len(self._widths), ENTRY_FIELDS.value)
        return torch.zeros(shape, dtype=torch.int64, device=device)

    @property
    def num_slots(self) -> int:
        return self.entries.shape[0]

    @property
    def generation(self) -> int:
        """The tables move when they grow."""
        return self.num_slots

    def write(self, slot: int, factors: Mapping[int, LoraFactors]) -> None:
        self._grow(slot + 1)
        rows = torch.zeros(self.entries.shape[1:], dtype=torch.int64)
        for index, projection in factors.items():
            rows[index] = torch.tensor(self._entry(index, projection))
        # On the stream of the kernels: steps before it read the old slot, steps after it the new.
        self.entries[slot].copy_(rows)
        self._resident[slot] = dict(factors)

    def clear(self, slot: int) -> None:
        self.write(slot, {})

    def projection(self, index: int) -> ProjectionTable:
        return ProjectionTable(self, index, self._widths[index])

    def _grow(self, needed: int) -> None:
        if needed <= self.num_slots:
            return
        larger = self._empty(max(needed, 2 * self.num_slots), self.entries.device)
        larger[: self.num_slots] = self.entries
        self.entries = larger

    def _entry(self, index: int, factors: LoraFactors) -> list[int]:
        assert all(part.b.shape[0] <= MAX_RANK for part in factors.parts)
        entry = [0] * ENTRY_FIELDS.value
        entry[ENTRY_A.value] = _address(factors.a)
        entry[ENTRY_NUM_RANKS.value] = factors.a.shape[0]
        starts = [sum(self._widths[index][:place]) for place in range(len(self._widths[index]))]
        for part in factors.parts:
            place = starts.index(part.first_column)
            entry[ENTRY_B.value + place] = _address(part.b)
            entry[ENTRY_RANK.value + place] = part.b.shape[0]
            entry[ENTRY_FIRST_RANK.value + place] = part.first_rank
            entry[ENTRY_SCALE.value + place] = float_bits(part.scale)
        return entry


def float_bits(value: float) -> int:
    """The bits of a float32 as a signed 32-bit integer."""
    return struct.unpack("<i", struct.pack("<f", value))[0]


def _address(factor: Tensor) -> int:
    # Kernels load 16 bytes at a time.
    assert factor.is_contiguous()
    assert factor.data_ptr() % 16 == 0
    return factor.data_ptr()
