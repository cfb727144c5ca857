"""How likely the model thought tokens: of the logits as they are, before any setting changes them.

All in float64, row by row, so that neither neighbours nor chunks show in a score.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .request import TokenScore

# The float64 copy of so many logits takes 16 MiB.
_CHUNK_ELEMENTS = 1 << 21


@dataclass(frozen=True, slots=True)
class ScoreOrder:
    """Score ``token`` and the ``num_top`` likeliest by one row of logits."""

    row: int
    token: int
    num_top: int


def score(logits: Tensor, orders: Sequence[ScoreOrder]) -> list[TokenScore]:
    """The scores of ``orders`` by float32 ``logits`` [B, V]; the host waits once per chunk."""
    size = max(1, _CHUNK_ELEMENTS // logits.shape[1])
    chunks = [orders[start : start + size] for start in range(0, len(orders), size)]
    return [scored for chunk in chunks for scored in _score_chunk(logits, chunk)]


def _score_chunk(logits: Tensor, orders: Sequence[ScoreOrder]) -> list[TokenScore]:
    device = logits.device
    rows = torch.tensor([order.row for order in orders], device=device)
    tokens = torch.tensor([[order.token] for order in orders], device=device)
    values = logits.index_select(0, rows).double()
    total = values.logsumexp(1, keepdim=True)
    width = min(max(order.num_top for order in orders), logits.shape[1])
    best, ids = values.topk(width, dim=1)
    found = torch.cat([values.gather(1, tokens) - total, best - total, ids.double()], 1).tolist()
    return [_read(order, row, width) for order, row in zip(orders, found, strict=True)]


def _read(order: ScoreOrder, row: Sequence[float], width: int) -> TokenScore:
    """``row`` is the token's own logarithm, then those of the likeliest, then their ids."""
    count = min(order.num_top, width)
    ids = tuple(int(number) for number in row[1 + width : 1 + width + count])
    return TokenScore(row[0], ids, tuple(row[1 : 1 + count]))
