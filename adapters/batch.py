"""From rows in batch order to segments."""

from collections.abc import Iterable
from itertools import groupby

from multiflora.kernels.ops import Segment

# The (slot, weight) pairs that a row uses; empty for the base, several for a blend.
Blend = tuple[tuple[int, float], ...]


def make_segments(runs: Iterable[tuple[int, Blend]]) -> tuple[Segment, ...]:
    """``runs`` are (number of rows, blend) in batch order; equal neighbours share segments.

    A run emits one segment per parent of its blend, in the blend's own order, so that a row's sum
    is never reordered by its neighbours.
    """
    segments: list[Segment] = []
    start = 0
    for blend, group in groupby(runs, key=lambda run: run[1]):
        stop = start + sum(num_rows for num_rows, _ in group)
        segments += [Segment(start, stop, slot, weight) for slot, weight in blend]
        start = stop
    return tuple(segments)
