"""Causal attention inside each sequence of a packed batch, by torch's fused kernels.

Sequences of about one length share a call. Shorter ones are padded at their ends: later keys are
hidden by causality, and what padded queries give is dropped, so padding changes no result.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from .packed_batch import Span

# In a group the longest sequence is at most so much longer than the shortest; below so many keys a
# call costs more than any padding.
_STRETCH: Final = 1.25
_SHORT: Final = 64


@dataclass(frozen=True, slots=True)
class _Places:
    """Which rows of the batch fill the padded places of all groups, and where each row lies.

    ``of_rows`` is None where a row fills several places: the prompt of a preference.
    """

    rows: Tensor  # int64 [padded places]
    of_rows: Tensor | None  # int64 [T]


@dataclass(frozen=True, slots=True)
class _Group:
    """``size`` sequences of one call, and what their queries see: None is plain causality."""

    size: int
    num_queries: int
    num_keys: int
    visible: Tensor | None  # bool [size, 1, num_queries, num_keys]


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Groups in the order of their places; places are None where each row lies in its own."""

    groups: tuple[_Group, ...]
    queries: _Places | None
    keys: _Places | None


def plan_attention(
    spans: Sequence[Span], window: int | None, device: torch.device
) -> AttentionPlan:
    """Everything that no layer with this ``window`` changes; spans cover all rows in order.

    A query at position p sees positions ``max(0, p - window + 1) .. p`` of its own sequence.
    """
    groups, query_rows, key_rows = [], [], []
    for members in _grouped(spans, window):
        num_queries = max(span.stop - span.start for span in members)
        num_keys = max(map(_num_keys, members))
        visible = None
        if _is_masked(members[-1], window):
            visible = _visible(members, num_queries, num_keys, window).to(device)
        groups.append(_Group(len(members), num_queries, num_keys, visible))
        query_rows += [_padded(range(s.start, s.stop), num_queries) for s in members]
        key_rows += [
            _padded((*range(*s.prefix), *range(s.start, s.stop)), num_keys) for s in members
        ]
    has_prefixes = any(span.first_position for span in spans)
    queries = _places(query_rows, device)
    keys = _places(key_rows, device, is_shared=True) if has_prefixes else queries
    return AttentionPlan(tuple(groups), queries, keys)


def attend(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
    """q [T, Q, D] over k and v [T, G, D] -> [T, Q, D]; differentiable.

    Query head h reads kv head ``h // (Q / G)``.
    """
    num_queries = [group.size * group.num_queries for group in plan.groups]
    num_keys = [group.size * group.num_keys for group in plan.groups]
    padded = zip(
        plan.groups,
        _pad(q, plan.queries).split(num_queries),
        _pad(k, plan.keys).split(num_keys),
        _pad(v, plan.keys).split(num_keys),
        strict=True,
    )
    attended = [_attend_group(group, *parts, scale=scale) for group, *parts in padded]
    flat = attended[0] if len(attended) == 1 else torch.cat(attended)
    return flat if plan.queries is None else _Unpad.apply(flat, plan.queries)


def _attend_group(group: _Group, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    attended = functional.scaled_dot_product_attention(
        q.unflatten(0, (group.size, -1)).transpose(1, 2),  # [size, Q, queries, D]
        k.unflatten(0, (group.size, -1)).transpose(1, 2),
        v.unflatten(0, (group.size, -1)).transpose(1, 2),
        attn_mask=group.visible,
        is_causal=group.visible is None,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return attended.transpose(1, 2).flatten(0, 1)


def _pad(x: Tensor, places: _Places | None) -> Tensor:
    if places is None:
        return x
    if places.of_rows is None:
        return x.index_select(0, places.rows)
    return _Pad.apply(x, places)


class _Pad(torch.autograd.Function):
    """Rows to places; what comes back from padding is zero and is left there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: _Places) -> Tensor:
        ctx.places = places
        return x.index_select(0, places.rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0].index_select(0, ctx.places.of_rows), None


class _Unpad(torch.autograd.Function):
    """Places back to rows."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, places: _Places) -> Tensor:
        ctx.places = places
        assert places.of_rows is not None
        return padded.index_select(0, places.of_rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        dpadded = dy.new_zeros(ctx.places.rows.shape[0], *dy.shape[1:])
        return dpadded.index_copy_(0, ctx.places.of_rows, dy), None


def _grouped(spans: Sequence[Span], window: int | None) -> Iterator[list[Span]]:
    """Spans of one kind and about one length, shortest first."""
    group: list[Span] = []
    for span in sorted(spans, key=lambda span: (_is_masked(span, window), _num_keys(span))):
        if group and not _fits(span, group[0], window):
            yield group
            group = []
        group.append(span)
    yield group


def _fits(span: Span, first: Span, window: int | None) -> bool:
    if _is_masked(span, window) != _is_masked(first, window):
        return False
    return _num_keys(span) <= max(_SHORT, _STRETCH * _num_keys(first))


def _is_masked(span: Span, window: int | None) -> bool:
    return bool(span.first_position) or (window is not None and window < _num_keys(span))


def _num_keys(span: Span) -> int:
    return span.first_position + span.stop - span.start


def _padded(rows: Sequence[int], length: int) -> list[int]:
    return [*rows, *[rows[-1]] * (length - len(rows))]


def _places(
    padded: list[list[int]], device: torch.device, *, is_shared: bool = False
) -> _Places | None:
    rows = [row for sequence in padded for row in sequence]
    if is_shared:
        return _Places(torch.tensor(rows, device=device), None)
    if rows == list(range(len(rows))):
        return None
    # Of a row that also fills padding the first place is its own.
    of_rows = [0] * (max(rows) + 1)
    for place, row in reversed([*enumerate(rows)]):
        of_rows[row] = place
    return _Places(torch.tensor(rows, device=device), torch.tensor(of_rows, device=device))


def _visible(spans: Sequence[Span], num_queries: int, num_keys: int, window: int | None) -> Tensor:
    """bool [spans, 1, num_queries, num_keys]; a padded query sees what the last one sees, since a
    row of nothing would be NaN."""
    first = torch.tensor([span.first_position for span in spans])[:, None]
    last = torch.tensor([_num_keys(span) - 1 for span in spans])[:, None]
    queries = torch.minimum(first + torch.arange(num_queries), last)[:, None, :, None]
    keys = torch.arange(num_keys)
    visible = keys <= queries
    if window is not None:
        visible &= keys > queries - window
    return visible
