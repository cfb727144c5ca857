# pyright: reportAttributeAccessIssue=false
"""NF4 matmul with the LoRA expand in its epilogue.

One program computes ``BM`` rows by ``BN`` columns over its share of K: stream a tile of codes, look
them up, four dots of 16 into a fresh float32 partial, and one FMA per output by the absmax of the
64-weight group. Weights are never scaled in half precision, which is both cheaper and closer to the
exact product than decoding first. Shares of K meet in float32 slabs; the program that arrives last
adds them in order, so that the sum never depends on who was late.
"""

import triton
import triton.language as tl

from .codebook import gather_plane, load_words, permute_planes
from .lora_epilogue import add_segments

GROUP = tl.constexpr(64)


# Compiled once for any number of rows: alignment follows from the other arguments.
@triton.jit(do_not_specialize=["M", "shrunk_rows"])
def nf4_matmul_kernel(
    x,
    codes,
    absmax,
    words,
    values,
    bias,
    y,
    partials,
    arrivals,
    tiles,
    segments,
    entries,
    shrunk,
    M,
    N,
    num_groups,
    entry_stride,
    shrunk_rows,
    second_slice,
    third_slice,
    BM: tl.constexpr,
    BN: tl.constexpr,
    SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    LORA: tl.constexpr,
    V_STRIDE: tl.constexpr,
    NUM_SLABS: tl.constexpr,
    RB: tl.constexpr,
    PERMUTE: tl.constexpr,
    UPCAST: tl.constexpr,
    PDL: tl.constexpr,
):
    """y [M, N] = x [M, K] @ W.T + bias + deltas; grid (column blocks, SPLIT, row tiles).

    ``tiles`` int32 [row tiles, 2] holds the range of segments that touch a tile.
    """
    block, split, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_blocks = tl.num_programs(0)
    rows = tile * BM + tl.arange(0, BM)
    acc = _multiply(
        x, codes, absmax, words, values, rows, block, split, M, num_groups,
        BM, BN, SPLIT, STAGES, PERMUTE, UPCAST,
    )  # fmt: skip
    if SPLIT > 1:
        width = num_blocks * BN
        at = rows[:, None] * width + block * BN + tl.arange(0, BN)[None, :]
        slab = tl.num_programs(2) * BM * width
        tl.store(partials + split * slab + at, acc)
        # All of the block's stores must be issued before its arrival is counted.
        tl.debug_barrier()
        arrived = tl.atomic_add(arrivals + tile * num_blocks + block, 1, sem="acq_rel")
        is_last = arrived == SPLIT - 1
        if is_last:
            acc = tl.load(partials + at, cache_modifier=".cg")
            if BM <= 32:
                for other in tl.static_range(1, SPLIT):
                    acc += tl.load(partials + other * slab + at, cache_modifier=".cg")
            else:
                # All slabs of 64 rows in flight at once would not fit the registers.
                for other in range(1, SPLIT):
                    acc += tl.load(partials + other * slab + at, cache_modifier=".cg")
            # Ready for the next launch, also in a replayed graph.
            tl.store(arrivals + tile * num_blocks + block, 0)
            _finish(
                acc, rows, block, tile, bias, y, tiles, segments, entries, shrunk, M, N,
                entry_stride, shrunk_rows, second_slice, third_slice,
                BM, BN, HAS_BIAS, LORA, V_STRIDE, NUM_SLABS, RB, UPCAST, PDL,
            )  # fmt: skip
    else:
        _finish(
            acc, rows, block, tile, bias, y, tiles, segments, entries, shrunk, M, N,
            entry_stride, shrunk_rows, second_slice, third_slice,
            BM, BN, HAS_BIAS, LORA, V_STRIDE, NUM_SLABS, RB, UPCAST, PDL,
        )  # fmt: skip


@triton.jit
def _multiply(
    x, codes, absmax, words, values, rows, block, split, M, num_groups,
    BM: tl.constexpr, BN: tl.constexpr, SPLIT: tl.constexpr, STAGES: tl.constexpr,
    PERMUTE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """float32 [BM, BN] of this split's groups; what is left over goes to the last split."""
    share = num_groups // SPLIT
    first = split * share
    last = tl.where(split == SPLIT - 1, num_groups, first + share)
    dtype: tl.constexpr = x.dtype.element_ty
    features, lanes = tl.arange(0, BN), tl.arange(0, 16)
    group = codes + (block.to(tl.int64) * num_groups + first) * (BN * 16)
    scales = absmax + (block.to(tl.int64) * num_groups + first) * BN
    x_tile = x + rows[:, None].to(tl.int64) * (num_groups * GROUP) + first * GROUP + lanes[None, :]
    present = (rows < M)[:, None]
    if PERMUTE:
        table = load_words(words)
    acc = tl.zeros((BM, BN), tl.float32)
    for _ in tl.range(first, last, num_stages=STAGES):
        partial = tl.zeros((BM, BN), tl.float32)
        if PERMUTE:
            packed = tl.load(group + features[:, None] * 16 + lanes[None, :])
            p0, p1, p2, p3 = permute_planes(packed, table, dtype)
        else:
            p0 = gather_plane(group, features[:, None], lanes[None, :], values, 0)
            p1 = gather_plane(group, features[:, None], lanes[None, :], values, 1)
            p2 = gather_plane(group, features[:, None], lanes[None, :], values, 2)
            p3 = gather_plane(group, features[:, None], lanes[None, :], values, 3)
        partial = _dot(x_tile, present, p0, partial, UPCAST)
        partial = _dot(x_tile + 16, present, p1, partial, UPCAST)
        partial = _dot(x_tile + 32, present, p2, partial, UPCAST)
        partial = _dot(x_tile + 48, present, p3, partial, UPCAST)
        acc += partial * tl.load(scales + features).to(tl.float32)[None, :]
        group += BN * 16
        scales += BN
        x_tile += GROUP
    return acc


@triton.jit
def _dot(x_tile, present, plane, partial, UPCAST: tl.constexpr):
    x = tl.load(x_tile, mask=present, other=0.0)
    if UPCAST:
        # The interpreter computes nonsense in bfloat16.
        return tl.dot(
            x.to(tl.float32), tl.trans(plane.to(tl.float32)), partial, input_precision="ieee"
        )
    return tl.dot(x, tl.trans(plane), partial)


@triton.jit
def _finish(
    acc, rows, block, tile, bias, y, tiles, segments, entries, shrunk, M, N,
    entry_stride, shrunk_rows, second_slice, third_slice,
    BM: tl.constexpr, BN: tl.constexpr, HAS_BIAS: tl.constexpr, LORA: tl.constexpr,
    V_STRIDE: tl.constexpr, NUM_SLABS: tl.constexpr, RB: tl.constexpr,
    UPCAST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Bias, deltas, one rounding, store."""
    cols = block * BN + tl.arange(0, BN)
    if HAS_BIAS:
        acc += tl.load(bias + cols, mask=cols < N, other=0.0).to(tl.float32)[None, :]
    if LORA:
        if PDL:
            # The shrink runs beside the matmul; its result is needed only here.
            tl.extra.cuda.gdc_wait()
        acc = add_segments(
            acc, rows, cols, tl.load(tiles + 2 * tile), tl.load(tiles + 2 * tile + 1),
            segments, entries, entry_stride, shrunk, shrunk_rows,
            second_slice, third_slice, N, block * BN,
            y.dtype.element_ty, V_STRIDE, NUM_SLABS, RB, BM, BN, UPCAST,
        )  # fmt: skip
    at = rows[:, None].to(tl.int64) * N + cols[None, :]
    tl.store(y + at, acc.to(y.dtype.element_ty), mask=(rows < M)[:, None] & (cols < N)[None, :])
