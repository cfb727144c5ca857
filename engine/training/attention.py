"""Causal attention inside each sequence of a packed batch, by torch's fused kernels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .packed_batch import Span


@dataclass(frozen=True, slots=True)
class PlannedSpan:
    """A span and what its queries may see: bool [rows, keys], or None for plain causality."""

    span: Span
    visible: Tensor | None


def plan_attention(
    spans: Sequence[Span], window: int | None, device: torch.device
) -> tuple[PlannedSpan, ...]:
    """Everything that no layer with this ``window`` changes.

    A query at position p sees positions ``max(0, p - window + 1) .. p`` of its own sequence.
    """
    return tuple(PlannedSpan(span, _visible(span, window, device)) for span in spans)


def attend(q: Tensor, k: Tensor, v: Tensor, plan: Sequence[PlannedSpan], scale: float) -> Tensor:
    """q [T, Q, D] over k and v [T, G, D] -> [T, Q, D]; differentiable.

    Query head h reads kv head ``h // (Q / G)``.
    """
    return torch.cat([_attend_span(q, k, v, planned, scale) for planned in plan])


def _attend_span(q: Tensor, k: Tensor, v: Tensor, planned: PlannedSpan, scale: float) -> Tensor:
    span = planned.span
    keys, values = (_rows(source, span) for source in (k, v))
    attended = functional.scaled_dot_product_attention(
        q[None, span.start : span.stop].transpose(1, 2),  # [1, Q, rows, D]
        keys[None].transpose(1, 2),
        values[None].transpose(1, 2),
        attn_mask=planned.visible,
        is_causal=planned.visible is None,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return attended[0].transpose(0, 1)


def _rows(source: Tensor, span: Span) -> Tensor:
    own = source[span.start : span.stop]
    if not span.first_position:
        return own
    return torch.cat((source[slice(*span.prefix)], own))


def _visible(span: Span, window: int | None, device: torch.device) -> Tensor | None:
    num_keys = span.first_position + span.stop - span.start
    is_narrow = window is not None and window < num_keys
    if not span.first_position and not is_narrow:
        return None
    keys = torch.arange(num_keys, device=device)
    queries = keys[span.first_position :, None]
    visible = keys <= queries
    if window is not None:
        visible &= keys > queries - window
    return visible
