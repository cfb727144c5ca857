"""Rotation and cache writes by the compiled core, or as in plain torch."""

from torch import Tensor

from ..ops import HeadNorm, HeadShape, RopeTable
from ..torch_ops import rotary
from .core import MOST_HEAD_SIZE, core_for
from .norm import rms_norm


def rotate_and_cache(
    qkv: Tensor,
    heads: HeadShape,
    norm: HeadNorm | None,
    rope: RopeTable,
    positions: Tensor,
    cache: tuple[Tensor, Tensor],
    cache_rows: Tensor,
) -> Tensor:
    core = core_for(qkv.dtype)
    if core is None or heads.size > MOST_HEAD_SIZE or cache[0].dtype != qkv.dtype:
        return rotary.rotate_and_cache(
            qkv, heads, norm, rope, positions, cache, cache_rows, rms_norm=rms_norm
        )
    return core.rotate_and_cache(qkv.contiguous(), heads, norm, rope, positions, cache, cache_rows)
