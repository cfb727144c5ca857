"""From hidden states to log-probabilities and their gradient, a chunk of predictions at a time.

Logits of a whole micro-batch never exist: only [chunk, V] of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from multiflora.kernels.ops import DenseWeight, Ops, Weight

from .head_size import chunk_rows

# Rows of a head that are decoded at a time: a multiple of every layout's slices.
PART_ROWS = 16_384


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What the base and the factors say of P tokens.

    ``entropies`` are of the whole distributions, in nats; ``is_top`` tells whether the token is the
    likeliest. ``slopes`` [P, H] is the gradient of each log-probability by its own normed row, or
    None where none was asked for. ``divergences`` are from an anchor, where there is one.
    """

    log_probs: Tensor  # float32 [P]
    entropies: Tensor  # float32 [P]
    is_top: Tensor  # bool [P]
    slopes: Tensor | None
    divergences: Tensor | None = None  # float32 [P]


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far a policy is from an anchor: nats [P], and their gradients by normed rows [P, H]."""

    values: Tensor
    slopes: Tensor


class TrainingHead:
    """The output matrix of the base, frozen."""

    def __init__(self, ops: Ops, weight: Weight) -> None:
        self._ops = ops
        self._weight = weight

    @torch.no_grad()
    def score(self, normed: Tensor, targets: Tensor, *, with_slopes: bool) -> TokenScores:
        """Score ``targets`` [P] after ``normed`` hidden states [P, H]; P is one chunk."""
        logits = self._logits(normed)  # [P, V]
        picked = logits.gather(1, targets[:, None])[:, 0]
        is_top = logits.argmax(-1) == targets
        normalizers = logits.logsumexp(-1)
        probabilities = logits.sub(normalizers[:, None]).exp_()
        mean_logits = torch.linalg.vecdot(probabilities, logits)
        slopes = None
        if with_slopes:
            probabilities.neg_()
            rows = torch.arange(targets.shape[0], device=targets.device)
            probabilities[rows, targets] += 1
            slopes = self._hidden(probabilities.to(normed.dtype))
        return TokenScores(picked - normalizers, normalizers - mean_logits, is_top, slopes)

    @torch.no_grad()
    def diverge(self, normed: Tensor, anchor: Tensor) -> "Divergence":
        """KL(anchor || policy) of the next token after ``anchor`` and ``normed`` [P, H], by row.

        P is a part of a chunk, since both distributions are held whole.
        """
        own = self._logits(normed).log_softmax(-1)  # [P, V]
        held = self._logits(anchor).log_softmax(-1)
        chances = held.exp()
        values = torch.linalg.vecdot(chances, held.sub_(own))
        slopes = self._hidden(own.exp_().sub_(chances).to(normed.dtype))
        return Divergence(values, slopes)

    @property
    def chunk_rows(self) -> int:
        """How many predictions may be scored at once."""
        return chunk_rows(self._weight.out_features, self._ops.NAME)

    def _logits(self, normed: Tensor) -> Tensor:
        """``normed @ W.T``, float32 [P, V]."""
        parts = [self._ops.linear(normed, part, None, None) for _, part in self._parts()]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).float()

    def _hidden(self, slopes: Tensor) -> Tensor:
        """``slopes @ W`` of slopes by logits [P, V], [P, H]."""
        products = (
            self._ops.input_gradient(slopes[:, first : first + part.out_features], part)
            for first, part in self._parts()
        )
        total = next(products)
        for product in products:
            total += product
        return total

    def _parts(self) -> Iterator[tuple[int, Weight]]:
        """The matrix by first row: whole, or in parts where a backend may decode it.

        A part is small beside the whole, so that no second head is ever in memory.
        """
        weight = self._weight
        if isinstance(weight, DenseWeight):
            yield 0, weight
            return
        for first in range(0, weight.out_features, PART_ROWS):
            stop = min(first + PART_ROWS, weight.out_features)
            yield first, self._ops.slice_nf4(weight, first, stop)


def concatenate(chunks: list[TokenScores]) -> TokenScores:
    """The scores of all chunks in order."""
    slopes = [chunk.slopes for chunk in chunks if chunk.slopes is not None]
    return TokenScores(
        torch.cat([chunk.log_probs for chunk in chunks]),
        torch.cat([chunk.entropies for chunk in chunks]),
        torch.cat([chunk.is_top for chunk in chunks]),
        torch.cat(slopes) if slopes else None,
    )
