"""Factors by slot in plain lists: what backends read that need no device tables."""

from collections.abc import Mapping, Sequence

import torch

from .ops import LoraFactors, LoraTables, Segment, Staging

# One projection's factors by slot; None where the version does not touch this projection.
LoraTable = Sequence[LoraFactors | None]


class ListTables:
    """``LoraTables`` as one list per projection."""

    generation = 0
    max_rank = None
    tile = (1, 1)

    def __init__(self, num_projections: int) -> None:
        self._tables: list[list[LoraFactors | None]] = [[] for _ in range(num_projections)]

    def write(self, slot: int, factors: Mapping[int, LoraFactors]) -> None:
        for index, table in enumerate(self._tables):
            table.extend([None] * (slot + 1 - len(table)))
            table[slot] = factors.get(index)

    def clear(self, slot: int) -> None:
        self.write(slot, {})

    def projection(self, index: int) -> LoraTable:
        return self._tables[index]


def make_lora_tables(widths: Sequence[Sequence[int]], device: torch.device) -> LoraTables:
    return ListTables(len(widths))


def plan_lora(segments: Sequence[Segment], *, num_rows: int, staging: Staging) -> Sequence[Segment]:
    """The segments are the plan."""
    return segments
