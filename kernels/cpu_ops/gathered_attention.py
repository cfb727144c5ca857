"""Paged attention with one query token per batch item of torch's fused kernel.

A token at position p attends over a gathered key range whose start and length depend on p (and the
window) alone. So the arithmetic of a token is the same whether it is decoded, prefilled in any
chunk, or recomputed, alone or among others.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional

from ..ops import AttentionRun

# Key ranges start at multiples of this and are powers of two of it: a multiple of every block size.
TILE = 128
# A one-row query goes down a matrix-vector path that is not invariant to the key range.
_MIN_GROUP = 2


@dataclass(frozen=True, slots=True)
class _Span:
    """Query rows of one request that attend over the same gathered key range."""

    start: int
    stop: int
    first_position: int
    first_key: int
    num_keys: int
    block_table: Sequence[int]


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Batch items of one fused call: either many one-row spans, or one span of many rows."""

    rows: Tensor  # int64 [rows]
    blocks: Tensor  # int64 [tables * num_keys / P], padded with block 0
    num_tables: int
    num_keys: int
    mask: Tensor  # float32 [rows, 1, 1, num_keys]: 0 or -inf


def group_runs(
    runs: Sequence[AttentionRun], *, block_size: int, window: int | None
) -> list[AttentionGroup]:
    spans = [span for run in runs for span in _spans(run, window)]
    singles = sorted((s for s in spans if s.stop - s.start == 1), key=lambda s: s.num_keys)
    grouped = [list(group) for _, group in groupby(singles, key=lambda s: s.num_keys)]
    grouped += [[span] for span in spans if span.stop - span.start > 1]
    return [_group(group, block_size, window) for group in grouped]


def _key_range(position: int, window: int | None) -> tuple[int, int]:
    """First key and number of keys gathered for a query at ``position``."""
    first = 0 if window is None else max(0, position - window + 1) // TILE * TILE
    num_keys = TILE
    while first + num_keys <= position:
        num_keys *= 2
    return first, num_keys


def _spans(run: AttentionRun, window: int | None) -> Iterator[_Span]:
    positions = range(run.first_position, run.first_position + run.stop - run.start)
    row = run.start
    for (first, num_keys), group in groupby(positions, key=lambda p: _key_range(p, window)):
        members = list(group)
        stop = row + len(members)
        yield _Span(row, stop, members[0], first, num_keys, run.block_table)
        row = stop


def _group(spans: list[_Span], block_size: int, window: int | None) -> AttentionGroup:
    num_keys = spans[0].num_keys
    blocks = [b for span in spans for b in _blocks(span, block_size)]
    queries = torch.tensor([p for s in spans for p in _positions(s)])[:, None]
    first_keys = torch.tensor([s.first_key for s in spans for _ in _positions(s)])[:, None]
    keys = first_keys + torch.arange(num_keys)
    visible = keys <= queries
    if window is not None:
        visible &= keys > queries - window
    mask = torch.zeros(visible.shape).masked_fill_(~visible, float("-inf"))
    rows = torch.tensor([row for span in spans for row in range(span.start, span.stop)])
    return AttentionGroup(rows, torch.tensor(blocks), len(spans), num_keys, mask[:, None, None, :])


def _positions(span: _Span) -> range:
    return range(span.first_position, span.first_position + span.stop - span.start)


def _blocks(span: _Span, block_size: int) -> list[int]:
    first = span.first_key // block_size
    needed = span.num_keys // block_size
    blocks = list(span.block_table[first : first + needed])
    return blocks + [0] * (needed - len(blocks))


def gathered_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, groups: list[AttentionGroup], scale: float
) -> Tensor:
    num_heads, head_dim = q.shape[1:]
    num_kv_heads = k_cache.shape[2]
    grouped = q.view(q.shape[0], num_kv_heads, -1, head_dim).float()  # [T, G, Q / G, D]
    group_size = grouped.shape[2]
    if group_size < _MIN_GROUP:
        grouped = grouped.expand(-1, -1, _MIN_GROUP, -1)
    out = torch.empty_like(q)
    for group in groups:
        k, v = _gather(k_cache, group), _gather(v_cache, group)
        attended = functional.scaled_dot_product_attention(
            grouped[group.rows], k, v, attn_mask=group.mask, scale=scale
        )[:, :, :group_size]
        out[group.rows] = attended.reshape(-1, num_heads, head_dim).to(q.dtype)
    return out


def _gather(cache: Tensor, group: AttentionGroup) -> Tensor:
    """float32 [rows, G, num_keys, D]; the rows of one request share memory."""
    num_kv_heads, head_dim = cache.shape[2:]
    pages = cache.index_select(0, group.blocks).float()
    keys = pages.view(group.num_tables, group.num_keys, num_kv_heads, head_dim).transpose(1, 2)
    return keys.expand(group.rows.shape[0], -1, -1, -1)
