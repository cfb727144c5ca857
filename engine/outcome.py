"""What a step brought each of its items: a drawn token, scores of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from multiflora.kernels.ops import Ops

from .request import TokenScore
from .sampler import Draw, sample
from .scheduler import ScheduledRequest
from .score import ScoreOrder, score


@dataclass(frozen=True, slots=True)
class Outcome:
    """``draw`` is None for an item that does not sample; ``score`` is that of the drawn token.

    ``embedding`` is the last hidden state of an item that pools, as little-endian float32.
    """

    draw: Draw | None = None
    score: TokenScore | None = None
    prompt_scores: tuple[TokenScore, ...] = ()
    embedding: bytes = b""


def outcomes(items: Sequence[ScheduledRequest], logits: Tensor, ops: Ops) -> list[Outcome]:
    """One for each of ``items``, whose rows in float32 ``logits`` [B, V] lie in their order."""
    drawn = _draw(items, logits, ops)
    orders = _score_orders(items, drawn)
    if not any(orders):
        return drawn
    scores = iter(score(logits, [order for own in orders for order in own]))
    return [
        _with_scores(item, outcome, [next(scores) for _ in own])
        for item, outcome, own in zip(items, drawn, orders, strict=True)
    ]


def _draw(items: Sequence[ScheduledRequest], logits: Tensor, ops: Ops) -> list[Outcome]:
    rows = []
    start = 0
    for item in items:
        start += item.num_logits
        if item.samples:
            rows.append(start - 1)
    if len(rows) < len(logits):
        own = logits.index_select(0, torch.tensor(rows, dtype=torch.int64, device=logits.device))
    else:
        own = logits
    draws = iter(sample(own, [item.request for item in items if item.samples], ops))
    return [Outcome(next(draws)) if item.samples else Outcome() for item in items]


def _score_orders(
    items: Sequence[ScheduledRequest], drawn: Sequence[Outcome]
) -> list[list[ScoreOrder]]:
    """For each item: those of the prompt, then that of its drawn token."""
    orders = []
    start = 0
    for item, outcome in zip(items, drawn, strict=True):
        sampling = item.request.request.sampling
        tokens = item.request.tokens
        own = [
            ScoreOrder(row, tokens[position + 1], sampling.prompt_logprobs or 0)
            for row, position in enumerate(item.scored, start)
        ]
        start += item.num_logits
        token = outcome.draw.token if outcome.draw else None
        if token is not None and sampling.logprobs is not None:
            own.append(ScoreOrder(start - 1, token, sampling.logprobs))
        orders.append(own)
    return orders


def _with_scores(item: ScheduledRequest, outcome: Outcome, scores: Sequence[TokenScore]) -> Outcome:
    count = len(item.scored)
    of_token = scores[count] if len(scores) > count else None
    return replace(outcome, score=of_token, prompt_scores=tuple(scores[:count]))


def with_embeddings(
    items: Sequence[ScheduledRequest], found: Sequence[Outcome], hidden: Tensor
) -> list[Outcome]:
    """Add the embeddings of the items that pool, from the hidden states [T, H] of all rows."""
    stops = list(accumulate(item.count for item in items))
    rows = [stop - 1 for item, stop in zip(items, stops, strict=True) if item.pools]
    states = hidden.index_select(0, torch.tensor(rows, device=hidden.device)).float().cpu()
    vectors = iter(states.numpy().astype("<f4"))
    return [
        replace(outcome, embedding=next(vectors).tobytes()) if item.pools else outcome
        for item, outcome in zip(items, found, strict=True)
    ]
