"""A step's segments as the integers that the LoRA kernels read, made once for all projections."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

from torch import Tensor

from ..ops import Segment, Staging
from ..staging import StagingOverflow
from .lora_tables import SHRINK_ROWS, float_bits
from .tiling import row_tile

# Rows of one program of the stand-alone expand, for few rows and for many.
EXPAND_ROWS = (16, 64)


@dataclass(frozen=True, slots=True)
class LoraPlan:
    """Integers by flat offsets; the field orders are those of ``lora_epilogue``.

    ``segments`` [S, 5]. ``tiles`` [row tiles, 2]: the range of segments that touch each tile of
    ``row_tile`` rows. ``shrink_tiles`` [programs, 2]: a segment and the offset of its first row; a
    negative segment is no work. ``expand_tiles`` [programs, 4]: rows ``[first, last)`` of one blend
    and its range of segments.
    """

    segments: Tensor
    tiles: Tensor
    shrink_tiles: Tensor
    expand_tiles: Tensor
    row_tile: int
    expand_rows: int
    num_shrink_tiles: int
    num_expand_tiles: int
    num_shrunk_rows: int
    in_epilogue: bool

    @property
    def graph_key(self) -> bool:
        """All else follows from the number of rows in a static plan."""
        return self.in_epilogue


def plan_lora(
    segments: Sequence[Segment],
    *,
    num_rows: int,
    staging: Staging,
    batch_invariant: bool,
) -> LoraPlan:
    tile = row_tile(num_rows, batch_invariant=batch_invariant)
    expand_rows = EXPAND_ROWS[num_rows > 4 * EXPAND_ROWS[0]]
    shrink = list(_shrink_tiles(segments))
    expand = list(_expand_tiles(segments, expand_rows))
    shrunk_rows = sum(segment.stop - segment.start for segment in segments)
    # A captured grid fits any step of its size: twice the rows, so that pairs blend in it too.
    room = 2 * num_rows if staging.is_static else None
    if room is not None and shrunk_rows > room:
        raise StagingOverflow(f"{shrunk_rows} rows of blends, a captured step has room for {room}")
    return LoraPlan(
        segments=staging.place(_segment_fields(segments), capacity=_times(5, room)),
        tiles=staging.place(_tile_ranges(segments, num_rows, tile)),
        shrink_tiles=staging.place(_padded(shrink, (-1, 0), room), capacity=_times(2, room)),
        expand_tiles=staging.place(_padded(expand, (0, 0, 0, 0), room), capacity=_times(4, room)),
        row_tile=tile,
        expand_rows=expand_rows,
        num_shrink_tiles=room or len(shrink),
        num_expand_tiles=room or len(expand),
        num_shrunk_rows=room or shrunk_rows,
        in_epilogue=batch_invariant or _walks_little(segments, num_rows, tile),
    )


# Segments per tile up to which the epilogue's serial walk is taken to be hidden by other tiles.
# Not measured on hardware yet: `make bench-gpu` times both sides of it.
_LONGEST_WALK = 8


def _walks_little(segments: Sequence[Segment], num_rows: int, tile: int) -> bool:
    ranges = _tile_ranges(segments, num_rows, tile)
    return (
        max(stop - start for start, stop in zip(ranges[::2], ranges[1::2], strict=True))
        <= _LONGEST_WALK
    )


def _segment_fields(segments: Sequence[Segment]) -> list[int]:
    lengths = (segment.stop - segment.start for segment in segments)
    first_rows = accumulate(lengths, initial=0)
    return [
        field
        for segment, first_row in zip(segments, first_rows, strict=False)
        for field in (
            segment.slot,
            segment.start,
            segment.stop,
            first_row,
            float_bits(segment.weight),
        )
    ]


def _tile_ranges(segments: Sequence[Segment], num_rows: int, tile: int) -> list[int]:
    """Segments are in row order, so those that touch a tile are a range."""
    ranges = []
    for start in range(0, num_rows, tile):
        touching = [
            index
            for index, segment in enumerate(segments)
            if segment.start < start + tile and segment.stop > start
        ]
        ranges += [touching[0], touching[-1] + 1] if touching else [0, 0]
    return ranges


def _shrink_tiles(segments: Sequence[Segment]) -> Iterator[tuple[int, int]]:
    for index, segment in enumerate(segments):
        for first in range(0, segment.stop - segment.start, SHRINK_ROWS):
            yield index, first


def _expand_tiles(segments: Sequence[Segment], rows: int) -> Iterator[tuple[int, int, int, int]]:
    """Rows of one blend at a time: distinct versions are added side by side."""
    index = 0
    for (start, stop), parents in groupby(segments, key=lambda s: (s.start, s.stop)):
        last = index + len(list(parents))
        for first in range(start, stop, rows):
            yield first, min(first + rows, stop), index, last
        index = last


def _padded(rows: Sequence[tuple[int, ...]], empty: tuple[int, ...], room: int | None) -> list[int]:
    missing = max(0, (room or 0) - len(rows))
    return [value for row in (*rows, *[empty] * missing) for value in row]


def _times(fields: int, room: int | None) -> int | None:
    return None if room is None else fields * room
