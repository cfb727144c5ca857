"""What a version changes in a projection beside its delta: plain tensor work on its own rows.

    y = output_scale * (W (input_scale * x) + bias + delta) + output_shift

Rows of other versions are never read or written, and everything is element by element, so that
neither NaN nor the number of rows of a neighbour can show.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from .ops import DenseWeight, LoraFactors, Ops, Segment

# As many elements torch leaves to one thread of a CPU. For more it wakes others, which takes longer
# than to go through some blocks of that size one by one.
_BLOCK_ELEMENTS: Final = 1 << 15
_WAKING_BLOCKS: Final = 8


@dataclass(frozen=True, slots=True)
class Adjustment:
    """One version at one projection; None where the version changes nothing.

    ``input_scale`` [K], ``output_scale`` [N] and ``output_shift`` [N] are float32. ``weight`` in
    the model's dtype stands in for the base's: [N, K], or [V, H] of an embedding. ``lookup`` are
    the factors of an embedding, with A [R, V].
    """

    input_scale: Tensor | None = None
    output_scale: Tensor | None = None
    output_shift: Tensor | None = None
    weight: Tensor | None = None
    lookup: LoraFactors | None = None

    @property
    def is_additive(self) -> bool:
        """Whether a blend can take a share of it, as it takes shares of deltas."""
        parts = (self.input_scale, self.output_scale, self.weight)
        return all(part is None for part in parts)

    @property
    def is_empty(self) -> bool:
        return self.is_additive and self.output_shift is None and self.lookup is None


# A segment, and what its version changes at the projection in question.
Adjusted = tuple[Segment, Adjustment]


def scale_inputs(x: Tensor, adjusted: list[Adjusted]) -> Tensor:
    """x [T, K], or a copy of it with the scaled rows."""
    scaled = x
    for segment, adjustment in adjusted:
        if adjustment.input_scale is not None:
            if scaled is x:
                scaled = x.clone()
            for rows in _blocks(scaled[segment.start : segment.stop]):
                rows.copy_(rows * adjustment.input_scale)
    return scaled


def adjust_outputs(y: Tensor, x: Tensor, adjusted: list[Adjusted], ops: Ops) -> None:
    """Bring y [T, N], the projection of x [T, K] with all deltas, to its final value in place."""
    for segment, adjustment in adjusted:
        rows = slice(segment.start, segment.stop)
        if adjustment.weight is not None:
            y[rows] = ops.linear(x[rows], DenseWeight(adjustment.weight), None, None)
        shift_and_scale(y[rows], adjustment, segment.weight)


def shift_and_scale(rows: Tensor, adjustment: Adjustment, weight: float) -> None:
    """``rows * output_scale + weight * output_shift`` in place, in float32 inside."""
    scale, shift = adjustment.output_scale, adjustment.output_shift
    if scale is None and shift is None:
        return
    for block in _blocks(rows):
        # Both are float32, and so is what they make of rows in a narrower dtype.
        wide = block if scale is None else block * scale
        if shift is not None:
            wide = wide + (shift if weight == 1 else weight * shift)
        block.copy_(wide)


def _blocks(rows: Tensor) -> Iterable[Tensor]:
    """Views of rows [T, N] that take the least time one after the other; whole where many are."""
    is_between = _BLOCK_ELEMENTS < rows.numel() <= _WAKING_BLOCKS * _BLOCK_ELEMENTS
    if rows.is_cpu and is_between:
        return rows.split(max(1, _BLOCK_ELEMENTS // rows.shape[-1]))
    return (rows,)


def adjust_embedding(hidden: Tensor, ids: Tensor, adjusted: list[Adjusted], ops: Ops) -> None:
    """Bring hidden [T, H], the embedding of ids [T], to its final value in place."""
    for segment, adjustment in adjusted:
        rows = slice(segment.start, segment.stop)
        if adjustment.weight is not None:
            hidden[rows] = ops.embedding(ids[rows], adjustment.weight)
        if adjustment.lookup is not None:
            _add_lookup(hidden[rows], ids[rows], adjustment.lookup, segment.weight, ops)
        shift_and_scale(hidden[rows], adjustment, segment.weight)


def _add_lookup(rows: Tensor, ids: Tensor, factors: LoraFactors, weight: float, ops: Ops) -> None:
    (part,) = factors.parts
    found = factors.a.index_select(1, ids).T.float().contiguous()  # [T, R]
    b = DenseWeight(part.b.T.float().contiguous())  # [H, R]
    delta = ops.linear(found, b, None, None)
    rows.copy_(rows.float() + weight * part.scale * delta)
