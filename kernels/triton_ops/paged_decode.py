# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
"""Attention of single rows over paged keys, divided among programs chunk by chunk."""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attend import attend_chunk, load_rows, merge, start_sums, weighted_mean
from .attention_plan import SPAN_FIELDS, AttentionPlan, Spans
from .interpreter import INTERPRETED
from .rounding import round_to

FIELDS = tl.constexpr(SPAN_FIELDS)


@dataclass(frozen=True, slots=True)
class DecodeLaunch:
    """How the kernel runs; not tuned on hardware yet, only free of register spills.

    Bits depend on ``key_tile`` and ``num_warps``, never on ``target_programs``.
    """

    key_tile: int = 64
    num_warps: int = 4
    num_stages: int = 3
    target_programs: int = 1024


DECODE = DecodeLaunch()
DECODE_WIDE = DecodeLaunch(num_warps=8)


def decode_launch(padded_size: int) -> DecodeLaunch:
    """For heads that fill ``padded_size``, a power of two."""
    return DECODE_WIDE if padded_size > 128 else DECODE


@triton.jit(do_not_specialize=["max_chunks"])
def paged_decode_kernel(
    q, k_cache, v_cache, spans, blocks, out, partial_acc, partial_peak, partial_norm,
    scale, max_chunks,
    GROUP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, P: tl.constexpr,
    KV_STRIDE: tl.constexpr, WINDOW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    STAGES: tl.constexpr, SPLIT: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One row's heads of one kv head; grid (spans, G, programs that share a row's chunks).

    With ``SPLIT``, sums of chunk c of several go to partial_acc [spans, Q, max_chunks, D] and
    partial_peak, partial_norm [spans, Q, max_chunks]; else one program merges them all.
    """
    index, kv_head, share = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    span = spans + index * FIELDS
    heads = tl.arange(0, BM)
    dims = tl.arange(0, DP)
    num_heads = tl.num_programs(1) * GROUP
    row = tl.load(span).to(tl.int64)
    inside = (heads < GROUP)[:, None] & (dims < D)[None, :]
    at = (row * num_heads + kv_head * GROUP + heads)[:, None] * D + dims[None, :]
    if tl.load(span + 1) == 0:
        if share == 0:
            tl.store(out + at, tl.zeros((BM, DP), out.dtype.element_ty), mask=inside)
        return
    position = tl.load(span + 2).to(tl.int32)
    chunk_size = tl.load(span + 4).to(tl.int32)
    first_key = position * 0
    if WINDOW > 0:
        first_key = tl.maximum(position - WINDOW + 1, 0)
    first_chunk = first_key // chunk_size
    num_chunks = position // chunk_size - first_chunk + 1
    if share >= num_chunks:
        return
    table = blocks + tl.load(span + 3)
    rows = load_rows(q + at, inside, UPCAST)
    positions = tl.full((BM,), 0, tl.int32) + position
    peak, norm, acc = start_sums(BM, DP)
    for chunk in range(share, num_chunks, tl.num_programs(2)):
        start = (first_chunk + chunk) * chunk_size
        chunk_peak, chunk_norm, chunk_acc = attend_chunk(
            rows, k_cache + kv_head * D, v_cache + kv_head * D, table,
            tl.maximum(start, first_key), tl.minimum(start + chunk_size, position + 1),
            positions, scale, D, DP, P, KV_STRIDE, WINDOW, BM, BN, STAGES, UPCAST,
        )  # fmt: skip
        if SPLIT:
            if num_chunks > 1:
                head = (index * num_heads + kv_head * GROUP + heads).to(tl.int64)
                slot = head * max_chunks + chunk
                tl.store(partial_peak + slot, chunk_peak, mask=heads < GROUP)
                tl.store(partial_norm + slot, chunk_norm, mask=heads < GROUP)
                tl.store(partial_acc + slot[:, None] * D + dims[None, :], chunk_acc, mask=inside)
            else:
                peak, norm, acc = merge(peak, norm, acc, chunk_peak, chunk_norm, chunk_acc)
        else:
            peak, norm, acc = merge(peak, norm, acc, chunk_peak, chunk_norm, chunk_acc)
    if num_chunks == 1 or not SPLIT:
        mean = weighted_mean(norm, acc)
        tl.store(out + at, round_to(mean, out.dtype.element_ty, UPCAST), mask=inside)


@triton.jit(do_not_specialize=["max_chunks"])
def merge_chunks_kernel(
    spans, out, partial_acc, partial_peak, partial_norm, max_chunks,
    D: tl.constexpr, DP: tl.constexpr, WINDOW: tl.constexpr, STAGES: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """out [T, Q, D] of the rows of several chunks; grid (spans, Q)."""
    index, head = tl.program_id(0), tl.program_id(1)
    span = spans + index * FIELDS
    position = tl.load(span + 2).to(tl.int32)
    chunk_size = tl.load(span + 4).to(tl.int32)
    first_chunk = position * 0
    if WINDOW > 0:
        first_chunk = tl.maximum(position - WINDOW + 1, 0) // chunk_size
    num_chunks = position // chunk_size - first_chunk + 1
    if num_chunks == 1:
        return
    one, dims = tl.arange(0, 1), tl.arange(0, DP)
    first_slot = (index * tl.num_programs(1) + head).to(tl.int64) * max_chunks
    peak, norm, acc = start_sums(1, DP)
    for chunk in tl.range(0, num_chunks, num_stages=STAGES):
        slot = first_slot + chunk + one
        chunk_acc = tl.load(
            partial_acc + slot[:, None] * D + dims[None, :], mask=(dims < D)[None, :], other=0.0
        )
        chunk_peak, chunk_norm = tl.load(partial_peak + slot), tl.load(partial_norm + slot)
        peak, norm, acc = merge(peak, norm, acc, chunk_peak, chunk_norm, chunk_acc)
    row = tl.load(span).to(tl.int64) * tl.num_programs(1) + head
    mean = round_to(weighted_mean(norm, acc), out.dtype.element_ty, UPCAST)
    tl.store(out + row * D + dims[None, :], mean, mask=(dims < D)[None, :])


def paged_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    plan: AttentionPlan,
    spans: Spans,
    out: Tensor,
    scale: float,
) -> None:
    """Fill ``out`` [T, Q, D] on the rows of ``spans``."""
    _, num_heads, size = q.shape
    _, block_size, num_kv_heads, _ = k_cache.shape
    group, padded = num_heads // num_kv_heads, triton.next_power_of_2(size)
    launch = decode_launch(padded)
    shares = min(spans.max_chunks, max(1, launch.target_programs // (spans.count * num_kv_heads)))
    is_split = shares > 1
    slots = (spans.count, num_heads, spans.max_chunks) if is_split else (1, 1, 1)
    partial_acc = torch.empty((*slots, size), dtype=torch.float32, device=q.device)
    partial_peak, partial_norm = torch.empty((2, *slots), dtype=torch.float32, device=q.device)
    paged_decode_kernel[(spans.count, num_kv_heads, shares)](
        q, k_cache, v_cache, spans.table, plan.blocks, out, partial_acc, partial_peak, partial_norm,
        scale / math.log(2), spans.max_chunks,
        GROUP=group, D=size, DP=padded, P=block_size, KV_STRIDE=num_kv_heads * size,
        WINDOW=plan.window or 0, BM=max(16, triton.next_power_of_2(group)), BN=launch.key_tile,
        STAGES=launch.num_stages, SPLIT=is_split, UPCAST=INTERPRETED, num_warps=launch.num_warps,
    )  # fmt: skip
    if is_split:
        merge_chunks_kernel[(spans.count, num_heads)](
            spans.table, out, partial_acc, partial_peak, partial_norm, spans.max_chunks,
            D=size, DP=padded, WINDOW=plan.window or 0, STAGES=4, UPCAST=INTERPRETED, num_warps=1,
        )  # fmt: skip
