"""Which rows of a step attend over which cached keys, as tables that the kernels read.

A span is rows of one request at consecutive positions: ``[first row, number of rows, position of
the first, where its blocks start in the flat list, chunk size, rows of the spans before it]``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..ops import AttentionRun, Staging

SPAN_FIELDS = 6
# Keys of the shortest chunk. Results depend on it.
MIN_CHUNK = 256
# Chunks of a row double in size rather than exceed this number.
MAX_CHUNKS = 64


@dataclass(frozen=True, slots=True)
class Spans:
    """Rows that one launch works on."""

    table: Tensor  # [count * SPAN_FIELDS]
    count: int
    num_rows: int
    max_chunks: int  # no row has more


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    decode: Spans | None  # one row each, or none: then the row's result is zero
    prefill: Spans | None
    blocks: Tensor  # the block tables of all runs, one after the other
    block_size: int
    window: int | None

    @property
    def graph_key(self) -> None:
        """A static plan follows from the number of rows alone."""


@dataclass(frozen=True, slots=True)
class _Span:
    first_row: int
    num_rows: int
    first_position: int
    first_block: int
    chunk_size: int

    def num_chunks(self, window: int | None) -> int:
        # A span of no row still needs one program, to set it to zero.
        last = self.first_position + max(1, self.num_rows) - 1
        first = 0 if window is None else max(0, self.first_position - window + 1)
        return last // self.chunk_size - first // self.chunk_size + 1


def plan_attention(
    runs: Sequence[AttentionRun],
    *,
    num_rows: int,
    block_size: int,
    window: int | None,
    max_context: int,
    staging: Staging,
) -> AttentionPlan:
    """One-row runs are decoded, longer ones prefilled; rows of no run are set to zero.

    With a static staging every run has one row, and what is launched depends on ``num_rows`` and
    ``max_context``, the longest request that can occur, alone. The list of blocks, whose length
    varies, is placed last.
    """
    blocks, decode, prefill = _divide(runs, block_size, window)
    decode += _unused_rows(runs, num_rows)
    max_chunks = max((span.num_chunks(window) for span in decode), default=1)
    capacity = None
    if staging.is_static:
        assert not prefill, "only decode steps are captured"
        max_chunks = _most_chunks(max_context, window)
        capacity = num_rows * -(-max_context // block_size)
    return AttentionPlan(
        decode=_place(decode, max_chunks, staging),
        prefill=_place(prefill, 1, staging),
        # Never empty: a captured graph keeps the address.
        blocks=staging.place(blocks or [0], capacity=capacity),
        block_size=block_size,
        window=window,
    )


def _divide(
    runs: Sequence[AttentionRun], block_size: int, window: int | None
) -> tuple[list[int], list[_Span], list[_Span]]:
    """The flat list of blocks, the spans to decode, the spans to prefill."""
    blocks: list[int] = []
    decode: list[_Span] = []
    prefill: list[_Span] = []
    for run in runs:
        spans = prefill if run.stop - run.start > 1 else decode
        spans.extend(_spans(run, len(blocks), window))
        num_keys = run.first_position + run.stop - run.start
        blocks.extend(run.block_table[: -(-num_keys // block_size)])
    return blocks, decode, prefill


def _spans(run: AttentionRun, first_block: int, window: int | None) -> Iterator[_Span]:
    """Cut a run where the chunk size of its rows changes."""
    row, position = run.start, run.first_position
    while row < run.stop:
        size = chunk_size(position + 1, window)
        stop = min(run.stop, row + size * MAX_CHUNKS - position)
        if window is not None and position + 1 >= window:
            stop = run.stop
        yield _Span(row, stop - row, position, first_block, size)
        row, position = stop, position + stop - row


def chunk_size(num_keys: int, window: int | None) -> int:
    """Of a row that follows ``num_keys - 1`` tokens. Never a matter of its neighbours."""
    visible = num_keys if window is None else min(num_keys, window)
    size = MIN_CHUNK
    while size * MAX_CHUNKS < visible:
        size *= 2
    return size


def _most_chunks(max_context: int, window: int | None) -> int:
    """Of any row that can occur; a window may begin and end inside a chunk."""
    reach = max_context if window is None else min(max_context, window)
    most = min(MAX_CHUNKS, -(-reach // MIN_CHUNK))
    return most if window is None else most + 1


def _unused_rows(runs: Sequence[AttentionRun], num_rows: int) -> list[_Span]:
    if sum(run.stop - run.start for run in runs) == num_rows:
        return []
    used = {row for run in runs for row in range(run.start, run.stop)}
    return [_Span(row, 0, 0, 0, MIN_CHUNK) for row in range(num_rows) if row not in used]


def _place(spans: Sequence[_Span], max_chunks: int, staging: Staging) -> Spans | None:
    if not spans:
        return None
    fields: list[int] = []
    num_rows = 0
    for span in spans:
        fields += (
            span.first_row,
            span.num_rows,
            span.first_position,
            span.first_block,
            span.chunk_size,
            num_rows,
        )
        num_rows += span.num_rows
    return Spans(staging.place(fields), len(spans), num_rows, max_chunks)
