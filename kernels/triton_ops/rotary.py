# pyright: reportCallIssue=false
"""Rotary position embedding (arXiv 2104.09864) on the way into the cache, in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops import HeadNorm, HeadShape, RopeTable
from .interpreter import INTERPRETED
from .rounding import round_to

# Not tuned on hardware yet.
HEADS = 4
NUM_WARPS = 2


@triton.jit
def rotate_and_cache_kernel(
    qkv,
    q_out,
    k_cache,
    v_cache,
    q_weight,
    k_weight,
    cos,
    sin,
    positions,
    cache_rows,
    eps,
    qkv_stride,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    NORM: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Split, norm, rotate and store ``HEADS`` heads of one row; grid (T, head blocks).

    ``HALF`` is D / 2 rounded up to a power of two.
    """
    dtype: tl.constexpr = q_out.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    dims = tl.arange(0, HALF)
    in_half = dims < D // 2
    is_q = heads < NUM_HEADS
    is_k = (heads >= NUM_HEADS) & (heads < NUM_HEADS + NUM_KV_HEADS)
    is_v = heads >= NUM_HEADS + NUM_KV_HEADS
    inside = (heads < NUM_HEADS + 2 * NUM_KV_HEADS)[:, None] & in_half[None, :]
    source = qkv + row * qkv_stride + heads[:, None] * D + dims[None, :]
    first = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + D // 2, mask=inside, other=0.0).to(tl.float32)

    turned, other = first, second
    if NORM:
        squares = tl.sum(first * first + second * second, 1)
        scale = tl.rsqrt(squares / D + eps)[:, None]
        turned = _norm(first, scale, q_weight + dims, k_weight + dims, is_q, in_half, dtype, UPCAST)
        q_second, k_second = q_weight + D // 2 + dims, k_weight + D // 2 + dims
        other = _norm(second, scale, q_second, k_second, is_q, in_half, dtype, UPCAST)
    angle = tl.load(positions + row).to(tl.int64) * (D // 2) + dims
    c = tl.load(cos + angle, mask=in_half, other=0.0)[None, :]
    s = tl.load(sin + angle, mask=in_half, other=0.0)[None, :]
    rotated_first = round_to(turned * c - other * s, dtype, UPCAST)
    rotated_second = round_to(other * c + turned * s, dtype, UPCAST)

    target = q_out + (row * NUM_HEADS + heads[:, None]) * D + dims[None, :]
    q_mask = is_q[:, None] & in_half[None, :]
    tl.store(target, rotated_first, mask=q_mask)
    tl.store(target + D // 2, rotated_second, mask=q_mask)

    cache_row = tl.load(cache_rows + row).to(tl.int64)
    k_head = heads - NUM_HEADS
    at = (cache_row * NUM_KV_HEADS + k_head[:, None]) * D + dims[None, :]
    k_mask = is_k[:, None] & in_half[None, :] & (cache_row >= 0)
    tl.store(k_cache + at, rotated_first, mask=k_mask)
    tl.store(k_cache + at + D // 2, rotated_second, mask=k_mask)
    at -= NUM_KV_HEADS * D
    v_mask = is_v[:, None] & inside & (cache_row >= 0)
    tl.store(v_cache + at, first.to(dtype), mask=v_mask)
    tl.store(v_cache + at + D // 2, second.to(dtype), mask=v_mask)


@triton.jit
def _norm(
    x, scale, q_weight, k_weight, is_q, in_half, dtype: tl.constexpr, UPCAST: tl.constexpr
):  # fmt: skip
    """Half of each head times its norm, at the rounding points of ``rms_norm``."""
    q_factor = tl.load(q_weight, mask=in_half, other=0.0).to(tl.float32)[None, :]
    k_factor = tl.load(k_weight, mask=in_half, other=0.0).to(tl.float32)[None, :]
    factor = tl.where(is_q[:, None], q_factor, k_factor)
    scaled = round_to(x * scale, dtype, UPCAST).to(tl.float32)
    return round_to(factor * scaled, dtype, UPCAST).to(tl.float32)


def rotate_and_cache(
    qkv: Tensor,
    heads: HeadShape,
    norm: HeadNorm | None,
    rope: RopeTable,
    positions: Tensor,
    cache: tuple[Tensor, Tensor],
    cache_rows: Tensor,
) -> Tensor:
    """qkv [T, (Q + 2 G) * D], caches [num_blocks, P, G, D] written in place -> q [T, Q, D].

    ``positions`` and ``cache_rows`` [T] are int32 or int64; a negative cache row is not stored.
    """
    k_cache, v_cache = cache
    assert k_cache.is_contiguous()
    assert v_cache.is_contiguous()
    assert qkv.stride(-1) == 1
    assert rope.cos.is_contiguous()
    assert rope.sin.is_contiguous()
    num_rows, total = qkv.shape[0], heads.num_heads + 2 * heads.num_kv_heads
    q = torch.empty(
        (num_rows, heads.num_heads, heads.size), dtype=qkv.dtype, device=qkv.device
    )  # [T, Q, D]
    if not num_rows:
        return q
    rotate_and_cache_kernel[(num_rows, triton.cdiv(total, HEADS))](
        qkv,
        q,
        k_cache,
        v_cache,
        q if norm is None else norm.q,
        q if norm is None else norm.k,
        rope.cos,
        rope.sin,
        positions,
        cache_rows,
        0.0 if norm is None else norm.eps,
        qkv.stride(0),
        NUM_HEADS=heads.num_heads,
        NUM_KV_HEADS=heads.num_kv_heads,
        D=heads.size,
        HEADS=HEADS,
        HALF=triton.next_power_of_2(heads.size // 2),
        NORM=norm is not None,
        UPCAST=INTERPRETED,
        num_warps=NUM_WARPS,
    )
    return q
