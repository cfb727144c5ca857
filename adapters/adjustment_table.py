"""The adjustments of all resident versions, by slot and projection."""

from collections.abc import Mapping, Sequence

from multiflora.kernels.adjustment import Adjusted, Adjustment
from multiflora.kernels.ops import Segment


class AdjustmentTable:
    """Beside the tables of factors; empty while every resident version is plain LoRA."""

    def __init__(self) -> None:
        self._by_slot: dict[int, Mapping[int, Adjustment]] = {}

    def write(self, slot: int, adjustments: Mapping[int, Adjustment]) -> None:
        """Fill ``slot`` with a version's adjustments by projection. Between steps only."""
        self.clear(slot)
        if adjustments:
            self._by_slot[slot] = adjustments

    def clear(self, slot: int) -> None:
        self._by_slot.pop(slot, None)

    @property
    def is_empty(self) -> bool:
        return not self._by_slot

    def has(self, slot: int) -> bool:
        """Whether rows of the version need more than the segmented op."""
        return slot in self._by_slot

    def is_additive(self, slot: int) -> bool:
        """Whether a blend can take a share of the version."""
        return all(adjustment.is_additive for adjustment in self._by_slot.get(slot, {}).values())

    def touches(self, slot: int, index: int) -> bool:
        """Whether the version changes the projection ``index`` outside the segmented op."""
        return index in self._by_slot.get(slot, ())

    def at(self, index: int, segments: Sequence[Segment]) -> list[Adjusted]:
        """What the versions of ``segments`` change at the projection ``index``, in their order."""
        return [
            (segment, self._by_slot[segment.slot][index])
            for segment in segments
            if self.touches(segment.slot, index)
        ]
