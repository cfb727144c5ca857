"""Paged attention, one request at a time, as the definition reads."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import AttentionRun, Staging


@dataclass(frozen=True, slots=True)
class RunPlan:
    """One request's rows, its cache rows in position order, and what each query may see."""

    rows: slice
    cache_rows: Tensor  # int64 [S]
    visible: Tensor  # bool [rows, S]


def plan_attention(
    runs: Sequence[AttentionRun],
    *,
    num_rows: int,
    block_size: int,
    window: int | None,
    max_context: int,
    staging: Staging,
) -> list[RunPlan]:
    return [_plan_run(run, block_size, window, staging.device) for run in runs]


def _plan_run(
    run: AttentionRun, block_size: int, window: int | None, device: torch.device
) -> RunPlan:
    num_keys = run.first_position + run.stop - run.start
    keys = torch.arange(num_keys, device=device)
    queries = torch.arange(run.first_position, num_keys, device=device)[:, None]
    blocks = torch.tensor(run.block_table, device=device)
    visible = keys <= queries
    if window is not None:
        visible &= keys > queries - window
    cache_rows = blocks[keys // block_size] * block_size + keys % block_size
    return RunPlan(slice(run.start, run.stop), cache_rows, visible)


def paged_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, plan: list[RunPlan], scale: float
) -> Tensor:
    out = torch.empty_like(q)
    keys, values = k_cache.flatten(0, 1), v_cache.flatten(0, 1)  # [num_blocks * P, G, D]
    for run in plan:
        k, v = keys[run.cache_rows].float(), values[run.cache_rows].float()  # [S, G, D]
        out[run.rows] = _attend(q[run.rows].float(), k, v, run.visible, scale).to(q.dtype)
    return out


def _attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float) -> Tensor:
    num_rows, num_heads, head_dim = q.shape
    grouped = q.view(num_rows, k.shape[1], -1, head_dim)  # [rows, G, Q / G, D]
    scores = torch.einsum("tghd,sgd->tghs", grouped, k) * scale
    scores = scores.masked_fill(~visible[:, None, None, :], float("-inf"))
    attended = torch.einsum("tghs,sgd->tghd", scores.softmax(-1), v)
    return attended.reshape(num_rows, num_heads, head_dim)
