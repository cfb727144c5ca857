"""What a draw needs of whole rows of logits, in float64 where a probability is meant."""

import torch
from torch import Tensor


def peaks(logits: Tensor) -> tuple[Tensor, Tensor]:
    largest = torch.finfo(logits.dtype).max
    # Two reductions read less than one ``isfinite`` of every element.
    return logits.argmax(1), (logits.amin(1) >= -largest) & (logits.amax(1) <= largest)


def top_k(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    values, ids = logits.topk(count, dim=1)
    return values, ids


def weight_sums(logits: Tensor, temperatures: Tensor) -> Tensor:
    return _weights(logits, temperatures).sum(1)


def draw(logits: Tensor, temperatures: Tensor, points: Tensor) -> Tensor:
    running = _weights(logits, temperatures).cumsum(1)
    places = torch.searchsorted(running, points[:, None] * running[:, -1:], right=True)
    # Only a row that is not finite, and not used, can lie beyond.
    return places.clamp_(max=logits.shape[1] - 1)[:, 0]


def _weights(logits: Tensor, temperatures: Tensor) -> Tensor:
    """float64 [B, V]; the largest is 1."""
    distances = (logits - logits.amax(1, keepdim=True)).double()
    return distances.div_(temperatures[:, None]).exp_()
