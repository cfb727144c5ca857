"""Adding deltas to a finished output: for matmuls that have no epilogue of ours."""

import triton
import triton.language as tl

from .lora_epilogue import add_segments


@triton.jit(do_not_specialize=["num_tiles", "shrunk_rows"])
def lora_expand_kernel(
    y,
    expand_tiles,
    num_tiles,
    segments,
    entries,
    shrunk,
    N,
    entry_stride,
    shrunk_rows,
    second_slice,
    third_slice,
    BM: tl.constexpr,
    BN: tl.constexpr,
    V_STRIDE: tl.constexpr,
    NUM_SLABS: tl.constexpr,
    RB: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """y [M, N] in place; grid (column blocks, programs).

    A program owns rows of one blend, so distinct versions are added side by side and a row's
    parents one after the other, in float32, with one rounding.
    """
    block = tl.program_id(0)
    for tile in range(tl.program_id(1), num_tiles, tl.num_programs(1)):
        fields = expand_tiles + 4 * tile
        first, last = tl.load(fields), tl.load(fields + 1)
        if first < last:
            rows = first + tl.arange(0, BM)
            cols = block * BN + tl.arange(0, BN)
            at = y + rows[:, None].to(tl.int64) * N + cols[None, :]
            mask = (rows < last)[:, None] & (cols < N)[None, :]
            acc = tl.load(at, mask=mask, other=0.0).to(tl.float32)
            acc = add_segments(
                acc, rows, cols, tl.load(fields + 2), tl.load(fields + 3),
                segments, entries, entry_stride, shrunk, shrunk_rows,
                second_slice, third_slice, N, block * BN,
                y.dtype.element_ty, V_STRIDE, NUM_SLABS, RB, BM, BN, UPCAST,
            )  # fmt: skip
            tl.store(at, acc.to(y.dtype.element_ty), mask=mask)
