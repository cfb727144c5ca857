"""Rotary position embedding (arXiv 2104.09864), half-split form, on the way into the cache."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..ops import HeadNorm, HeadShape, RopeTable
from .kv_cache import write_kv
from .norm import rms_norm


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, heads, D] by the angles of its rows: cos, sin float32 [T, D / 2]."""
    first, second = x.float().chunk(2, dim=-1)  # [T, heads, D / 2]
    cos, sin = cos[:, None, :], sin[:, None, :]
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return rotated.to(x.dtype)


def split_heads(qkv: Tensor, heads: HeadShape) -> tuple[Tensor, Tensor, Tensor]:
    """[T, (Q + 2 G) * D] -> [T, Q, D], [T, G, D], [T, G, D]."""
    q, k, v = qkv.view(qkv.shape[0], -1, heads.size).split(
        (heads.num_heads, heads.num_kv_heads, heads.num_kv_heads), dim=1
    )
    return q, k, v


def rotate_and_cache(
    qkv: Tensor,
    heads: HeadShape,
    norm: HeadNorm | None,
    rope: RopeTable,
    positions: Tensor,
    cache: tuple[Tensor, Tensor],
    cache_rows: Tensor,
    *,
    rms_norm: Callable[[Tensor, Tensor, float], Tensor] = rms_norm,
) -> Tensor:
    q, k, v = split_heads(qkv, heads)
    if norm is not None:
        q, k = rms_norm(q, norm.q, norm.eps), rms_norm(k, norm.k, norm.eps)
    cos, sin = rope.cos[positions], rope.sin[positions]
    write_kv(rotate(k, cos, sin), v, *cache, cache_rows)
    return rotate(q, cos, sin)
