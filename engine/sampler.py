"""Logits to tokens, all rows at once; a row's draw never depends on its neighbours.

Order of the filters as in transformers and vLLM: bias, penalties, bans, temperature, top-k, top-p,
min-p. Of equal logits, the lower token id comes first. The random number of a token comes from a
hash of (seed, position), which is a counter-based stream: it needs no state and is the same after a
preemption or a restart.

The host waits for the device once, for the tokens. Rows that need more than the usual candidates
say so in that same answer and are then drawn from a full sort.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multiflora.kernels import torch_ops
from multiflora.kernels.ops import Ops

from .active_request import ActiveRequest
from .constraint import GrammarFailed
from .draw_plan import NARROW_TOP_K, WIDE_TOP_K, DrawPlan, Group, Span, group_of, plan_draws
from .penalties import Edits

# What stands where a token should: a row that cannot be drawn, or not from so few candidates.
_NOT_FINITE = -1
_UNDECIDED = -2
_NOTHING_LEFT = -3
# Rows are drawn so many logits at a time. Their float64 copy takes 16 MiB, which suits a CPU's
# caches; a GPU wants few launches instead.
_CHUNK_ELEMENTS = {"cpu": 1 << 21, "cuda": 1 << 25}


class NonFiniteLogits(ArithmeticError):
    """A row of logits holds NaN or infinity; only its own request may suffer for it."""


class NothingLeft(ArithmeticError):
    """The request's own settings rule every token out."""

    code = "no_token_left"


@dataclass(frozen=True, slots=True)
class Draw:
    """A sampled token, or why there is none."""

    token: int | None
    error: Exception | None = None


def sample(logits: Tensor, requests: Sequence[ActiveRequest], ops: Ops = torch_ops) -> list[Draw]:
    """Draw the next token of each request from its row of float32 ``logits`` [B, V].

    A row that is not finite gives a ``Draw`` whose error is ``NonFiniteLogits``, one whose settings
    rule everything out ``NothingLeft``.
    """
    assert len(logits) == len(requests), f"{len(logits)} rows for {len(requests)} requests"
    if not requests:
        return []
    groups = {row: group_of(request) for row, request in enumerate(requests)}
    codes = _codes(logits, requests, groups, ops)
    undecided = [row for row, code in codes.items() if code == _UNDECIDED]
    if undecided:
        codes |= _codes(logits, requests, dict.fromkeys(undecided, Group.EXACT), ops)
    return [_draw(codes[row], request) for row, request in enumerate(requests)]


def _draw(code: int, request: ActiveRequest) -> Draw:
    if code == _NOT_FINITE:
        return Draw(
            None, NonFiniteLogits(f"request {request.id}: the model's output is not finite")
        )
    if code == _NOTHING_LEFT:
        return Draw(None, _why_nothing_is_left(request))
    return Draw(code)


def _why_nothing_is_left(request: ActiveRequest) -> Exception:
    if request.constraint and (problem := request.constraint.problem):
        return GrammarFailed(problem)
    return NothingLeft(
        "the grammar, allowed_token_ids, bad_words and min_tokens together leave no token to draw"
    )


def _codes(
    logits: Tensor, requests: Sequence[ActiveRequest], groups: dict[int, Group], ops: Ops
) -> dict[int, int]:
    """A token or a code for each row in ``groups``; the host waits once."""
    if set(groups.values()) == {Group.PLAIN}:
        best, is_finite = ops.peaks(logits)
        return dict(enumerate(best.masked_fill_(~is_finite, _NOT_FINITE).tolist()))
    order = sorted(groups, key=groups.__getitem__)
    size = max(1, _CHUNK_ELEMENTS[logits.device.type] // logits.shape[1])
    codes = []
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        of_rows = [groups[row] for row in rows]
        plan = plan_draws(rows, of_rows, [requests[row] for row in rows], logits)
        codes.append(_planned_codes(_rows_of(logits, rows, plan), plan, ops))
    return dict(zip(order, torch.cat(codes).tolist(), strict=True))


def _rows_of(logits: Tensor, rows: Sequence[int], plan: DrawPlan) -> Tensor:
    """The plan's ``rows`` [B, V], in the step's own memory where they lie there unchanged."""
    is_run = list(rows) == list(range(rows[0], rows[0] + len(rows)))
    if is_run and not plan.edits:
        return logits[rows[0] : rows[0] + len(rows)]
    return logits.index_select(0, plan.rows)


def _planned_codes(logits: Tensor, plan: DrawPlan, ops: Ops) -> Tensor:
    """int64 [B] of the plan's ``logits`` [B, V], which are used up where the plan has edits."""
    best, is_finite = ops.peaks(logits)
    if plan.edits:
        _edit(logits, plan.edits)
        best, _ = ops.peaks(logits)
    codes = torch.cat([_span_codes(logits, best, plan.filters, span, ops) for span in plan.spans])
    if plan.edits and plan.edits.can_empty:
        codes.masked_fill_(logits.amax(1) == -torch.inf, _NOTHING_LEFT)
    return codes.masked_fill_(~is_finite, _NOT_FINITE)


def _edit(logits: Tensor, edits: Edits) -> None:
    """Change ``logits`` [B, V] in place: bias, penalties, shift, bans."""
    edits.bias(logits)
    edits.penalize(logits)
    # With the best logit at zero, no difference overflows but to -inf.
    logits.sub_(logits.amax(1, keepdim=True)).clamp_(min=torch.finfo(logits.dtype).min)
    edits.ban(logits)


def _span_codes(logits: Tensor, best: Tensor, filters: Tensor, span: Span, ops: Ops) -> Tensor:
    """int64 [b] of the rows of ``span``, all of one group; ``best`` [B] is the greedy choice."""
    rows = slice(span.start, span.stop)
    if span.group <= Group.GREEDY:
        return best[rows]
    if span.group is Group.WHOLE:
        temperature, _, _, _, point = filters[:, rows, 0].unbind()
        return ops.draw(logits[rows], temperature, point)
    return _draw_filtered(logits[rows], filters[:, rows], span.group, ops)


def _draw_filtered(logits: Tensor, filters: Tensor, group: Group, ops: Ops) -> Tensor:
    temperature, top_k, top_p, min_p, point = filters.unbind()  # [b, 1]
    values, ids = _ranked(logits, group, ops)  # [b, W]
    weights = (values - values[:, :1]).double().div_(temperature).exp_()
    if group is Group.NUCLEUS:
        total = ops.weight_sums(logits, temperature[:, 0])[:, None]
    else:
        weights *= torch.arange(values.shape[1], device=values.device) < top_k
        total = weights.sum(1, keepdim=True)
    before = (weights.cumsum(1) - weights) / total
    kept = (weights > 0) & (before < top_p) & (weights >= min_p * weights[:, :1])
    # The best is always kept, so that the weights of the others stay what they were.
    place = ops.draw(values.masked_fill(~kept, -torch.inf), temperature[:, 0], point[:, 0])[:, None]
    if group is Group.EXACT:
        return ids.gather(1, place)[:, 0]
    tokens = _token_at(place, values, ids)
    if values.shape[1] < logits.shape[1]:
        # A successor to keep, or an equal of the drawn token, may lie beyond the last candidate.
        is_open = kept[:, -1:] | (values.gather(1, place) == values[:, -1:])
        tokens.masked_fill_(is_open, _UNDECIDED)
    return tokens[:, 0]


def _ranked(logits: Tensor, group: Group, ops: Ops) -> tuple[Tensor, Tensor]:
    """The best logits, falling, and their int64 ids, both [b, W]."""
    if group is Group.EXACT:
        return logits.sort(dim=1, descending=True, stable=True)
    # One more than can be kept shows whether the last place is shared.
    width = 1 + (NARROW_TOP_K if group is Group.NARROW else WIDE_TOP_K)
    return ops.top_k(logits, min(width, logits.shape[1]))


def _token_at(place: Tensor, values: Tensor, ids: Tensor) -> Tensor:
    """The id at ``place`` [b, 1] once equal ``values`` [b, W] are in the order of their ids."""
    value = values.gather(1, place)
    num_better = (values > value).sum(1, keepdim=True)
    equals = ids.masked_fill(values != value, torch.iinfo(ids.dtype).max).sort(dim=1).values
    return equals.gather(1, place - num_better)
