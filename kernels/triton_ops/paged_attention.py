"""Paged attention of a step: decode and prefill rows over one output."""

import torch
from torch import Tensor

from .attention_plan import AttentionPlan
from .paged_decode import paged_decode
from .paged_prefill import DECODE_TILE, paged_prefill

ROW_TILE = 64
# With it, prefilled rows have the bits of decoded ones.
INVARIANT_ROW_TILE = DECODE_TILE


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    plan: AttentionPlan,
    scale: float,
    *,
    row_tile: int = ROW_TILE,
) -> Tensor:
    """Causal attention of q [T, Q, D] over caches [num_blocks, P, G, D] -> [T, Q, D].

    ``row_tile`` is how many rows times heads of a kv head a program of prefill takes.
    """
    assert k_cache.is_contiguous()
    assert v_cache.is_contiguous()
    assert k_cache.shape[1] == plan.block_size
    q = q.contiguous()
    out = torch.empty_like(q)
    if plan.decode is not None:
        paged_decode(q, k_cache, v_cache, plan, plan.decode, out, scale)
    if plan.prefill is not None:
        paged_prefill(q, k_cache, v_cache, plan, plan.prefill, out, scale, row_tile=row_tile)
    return out
