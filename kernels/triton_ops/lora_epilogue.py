"""What a segment adds to a tile of the output; shared by the fused and the stand-alone expand.

Tables that the kernels read (see ``lora_plan`` and ``lora_table``):

* a segment is int32 ``[slot, start, stop, first_row, weight]``: its rows of the batch, the row of
  the shrunk buffer that ``start`` maps to, and the bits of its float32 weight;
* an entry is int64 ``[16]`` for one slot at one projection: address of A, number of ranks, then for
  each of three slices the address of B, its rank, its first rank, the bits of its float32 scale.
"""

import triton
import triton.language as tl

SEGMENT_FIELDS = tl.constexpr(5)
ENTRY_FIELDS = tl.constexpr(16)
MAX_SLICES = tl.constexpr(3)
ENTRY_A = tl.constexpr(0)
ENTRY_NUM_RANKS = tl.constexpr(1)
ENTRY_B = tl.constexpr(2)
ENTRY_RANK = tl.constexpr(5)
ENTRY_FIRST_RANK = tl.constexpr(8)
ENTRY_SCALE = tl.constexpr(11)


@triton.jit
def load_float(address):
    """A float32 whose bits are stored in an integer field."""
    return tl.load(address).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def add_segments(
    acc,
    rows,
    cols,
    first_segment,
    last_segment,
    segments,
    entries,
    entry_stride,
    shrunk,
    shrunk_rows,
    second_slice,
    third_slice,
    width,
    first_col,
    dtype: tl.constexpr,
    V_STRIDE: tl.constexpr,
    NUM_SLABS: tl.constexpr,
    RB: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Add the deltas of segments ``[first, last)`` to ``acc`` float32 [BM, BN], one by one.

    Rows are selected after the dot: zero times another tenant's NaN would be NaN.
    """
    part_from = (first_col >= second_slice).to(tl.int32) + (first_col >= third_slice).to(tl.int32)
    last_col = first_col + BN - 1
    part_to = (last_col >= second_slice).to(tl.int32) + (last_col >= third_slice).to(tl.int32) + 1
    for index in range(first_segment, last_segment):
        segment = segments + index * SEGMENT_FIELDS
        start = tl.load(segment + 1)
        inside = (rows >= start) & (rows < tl.load(segment + 2))
        v_rows = (tl.load(segment + 3) + rows - start).to(tl.int64)
        weight = load_float(segment + 4)
        entry = entries + tl.load(segment).to(tl.int64) * entry_stride
        for part in range(part_from, part_to):
            begin = tl.where(part == 0, 0, tl.where(part == 1, second_slice, third_slice))
            end = tl.where(part == 0, second_slice, tl.where(part == 1, third_slice, width))
            rank = tl.load(entry + ENTRY_RANK + part).to(tl.int32)
            v_first = tl.load(entry + ENTRY_FIRST_RANK + part)
            scale = load_float(entry + ENTRY_SCALE + part) * weight
            b = tl.load(entry + ENTRY_B + part).to(tl.pointer_type(dtype))
            b = tl.multiple_of(b, 16)
            mine = (cols >= begin) & (cols < end)
            delta = tl.zeros((BM, BN), tl.float32)
            for r in range(0, rank, RB):
                ranks = r + tl.arange(0, RB)
                v = _load_shrunk(
                    shrunk + v_first + ranks[None, :],
                    v_rows,
                    inside[:, None] & (ranks < rank)[None, :],
                    shrunk_rows,
                    V_STRIDE,
                    NUM_SLABS,
                    BM,
                    RB,
                )
                factor = tl.load(
                    b + ranks[:, None] * (end - begin) + (cols - begin)[None, :],
                    mask=(ranks < rank)[:, None] & mine[None, :],
                    other=0.0,
                )
                if UPCAST:
                    delta = tl.dot(v, factor.to(tl.float32), delta, input_precision="ieee")
                else:
                    delta = tl.dot(v.to(dtype), factor, delta)
            acc = tl.where(inside[:, None] & mine[None, :] & (rank > 0), acc + delta * scale, acc)
    return acc


@triton.jit
def _load_shrunk(
    columns,
    v_rows,
    mask,
    shrunk_rows,
    V_STRIDE: tl.constexpr,
    NUM_SLABS: tl.constexpr,
    BM: tl.constexpr,
    RB: tl.constexpr,
):
    """Sum the split-K slabs of ``x @ A.T`` in their order: float32 [BM, RB]."""
    total = tl.zeros((BM, RB), tl.float32)
    if BM <= 32:
        for slab in tl.static_range(NUM_SLABS):
            address = columns + (slab * shrunk_rows + v_rows)[:, None] * V_STRIDE
            total += tl.load(address, mask=mask, other=0.0)
    else:
        # All slabs of 64 rows in flight at once would not fit the registers.
        for slab in range(NUM_SLABS):
            address = columns + (slab * shrunk_rows + v_rows)[:, None] * V_STRIDE
            total += tl.load(address, mask=mask, other=0.0)
    return total
