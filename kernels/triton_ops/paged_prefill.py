# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""Causal attention of many rows of a request over paged keys, one tile of rows per program."""

import math
from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from .attend import attend_chunk, load_rows, merge, start_sums, weighted_mean
from .attention_plan import SPAN_FIELDS, AttentionPlan, Spans
from .interpreter import INTERPRETED
from .paged_decode import decode_launch
from .rounding import round_to

FIELDS = tl.constexpr(SPAN_FIELDS)
# The tile whose tensor-core instructions are those of decode.
DECODE_TILE = 16


@dataclass(frozen=True, slots=True)
class PrefillLaunch:
    """How the kernel runs with larger tiles than decode's; not tuned on hardware yet.

    Two sums of [row tile, D] in registers are what limits it: the chunk's and all before it.
    """

    max_row_tile: int
    key_tile: int
    num_warps: int
    num_stages: int


def prefill_launch(padded_size: int) -> PrefillLaunch:
    """For heads that fill ``padded_size``, a power of two: the largest that spills nothing."""
    if padded_size <= 64:
        return PrefillLaunch(max_row_tile=64, key_tile=64, num_warps=4, num_stages=3)
    if padded_size <= 128:
        return PrefillLaunch(max_row_tile=64, key_tile=32, num_warps=8, num_stages=2)
    return PrefillLaunch(max_row_tile=32, key_tile=64, num_warps=8, num_stages=2)


@triton.jit(do_not_specialize=["num_spans"])
def paged_prefill_kernel(
    q, k_cache, v_cache, spans, blocks, out, scale, num_spans,
    GROUP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, P: tl.constexpr,
    KV_STRIDE: tl.constexpr, WINDOW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    STAGES: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """``BM // GROUP`` rows, with the heads of one kv head; grid (tiles, G).

    Span i owns the tiles from ``rows before it // rows of a tile + i`` on: enough for its rows
    whatever came before, at the cost of a few tiles without work.
    """
    ROWS: tl.constexpr = BM // GROUP
    # The last tiles of a prompt have the most keys: they start first.
    tile, kv_head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    index, end = tile * 0, tile * 0 + num_spans
    while end - index > 1:
        middle = (index + end) // 2
        if tl.load(spans + middle * FIELDS + 5).to(tl.int32) // ROWS + middle <= tile:
            index = middle
        else:
            end = middle
    span = spans + index * FIELDS
    num_rows = tl.load(span + 1).to(tl.int32)
    first = (tile - index - tl.load(span + 5).to(tl.int32) // ROWS) * ROWS
    if first >= num_rows:
        return
    last = tl.minimum(first + ROWS, num_rows) - 1
    lanes, dims = tl.arange(0, BM), tl.arange(0, DP)
    tokens = first + lanes // GROUP
    heads = kv_head * GROUP + lanes % GROUP
    num_heads = tl.num_programs(1) * GROUP
    inside = ((tokens <= last) & (lanes < ROWS * GROUP))[:, None] & (dims < D)[None, :]
    row = tl.load(span).to(tl.int64) + tokens
    at = (row * num_heads + heads)[:, None] * D + dims[None, :]
    rows = load_rows(q + at, inside, UPCAST)

    first_position = tl.load(span + 2).to(tl.int32)
    positions = first_position + tl.minimum(tokens, last)
    last_position = first_position + last
    chunk_size = tl.load(span + 4).to(tl.int32)
    first_key = first_position * 0
    if WINDOW > 0:
        first_key = tl.maximum(first_position + first - WINDOW + 1, 0)
    table = blocks + tl.load(span + 3)
    peak, norm, acc = start_sums(BM, DP)
    for chunk in range(first_key // chunk_size, last_position // chunk_size + 1):
        start = chunk * chunk_size
        chunk_peak, chunk_norm, chunk_acc = attend_chunk(
            rows, k_cache + kv_head * D, v_cache + kv_head * D, table,
            tl.maximum(start, first_key), tl.minimum(start + chunk_size, last_position + 1),
            positions, scale, D, DP, P, KV_STRIDE, WINDOW, BM, BN, STAGES, UPCAST,
        )  # fmt: skip
        peak, norm, acc = merge(peak, norm, acc, chunk_peak, chunk_norm, chunk_acc)
    mean = weighted_mean(norm, acc)
    tl.store(out + at, round_to(mean, out.dtype.element_ty, UPCAST), mask=inside)


def paged_prefill(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    plan: AttentionPlan,
    spans: Spans,
    out: Tensor,
    scale: float,
    *,
    row_tile: int,
) -> None:
    """Fill ``out`` [T, Q, D] on the rows of ``spans``."""
    _, num_heads, size = q.shape
    _, block_size, num_kv_heads, _ = k_cache.shape
    group, padded = num_heads // num_kv_heads, triton.next_power_of_2(size)
    least = max(DECODE_TILE, triton.next_power_of_2(group))
    launch = prefill_launch(padded)
    row_tile = max(least, min(row_tile, launch.max_row_tile))
    if row_tile == least:
        launch = decode_launch(padded)
    paged_prefill_kernel[(spans.num_rows // (row_tile // group) + spans.count, num_kv_heads)](
        q, k_cache, v_cache, spans.table, plan.blocks, out, scale / math.log(2), spans.count,
        GROUP=group, D=size, DP=padded, P=block_size,
        KV_STRIDE=num_kv_heads * size, WINDOW=plan.window or 0, BM=row_tile, BN=launch.key_tile,
        STAGES=launch.num_stages, UPCAST=INTERPRETED, num_warps=launch.num_warps,
    )  # fmt: skip
