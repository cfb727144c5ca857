"""From hidden states to log-probabilities and their gradient, a chunk of predictions at a time.

Logits of a whole micro-batch never exist: only [chunk, V] of them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from multiflora.kernels.ops import DenseWeight, Ops, Weight


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
        matrix = self._matrix(normed.dtype)
        logits = (normed @ matrix.T).float()  # [P, V]
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
            slopes = probabilities.to(matrix.dtype) @ matrix
        return TokenScores(picked - normalizers, normalizers - mean_logits, is_top, slopes)

    @torch.no_grad()
    def diverge(self, normed: Tensor, anchor: Tensor) -> "Divergence":
        """KL(anchor || policy) of the next token after ``anchor`` and ``normed`` [P, H], by row.

        P is a part of a chunk, since both distributions are held whole.
        """
        matrix = self._matrix(normed.dtype)
        own = (normed @ matrix.T).float().log_softmax(-1)  # [P, V]
        held = (anchor @ matrix.T).float().log_softmax(-1)
        chances = held.exp()
        values = torch.linalg.vecdot(chances, held.sub_(own))
        slopes = own.exp_().sub_(chances).to(matrix.dtype) @ matrix
        return Divergence(values, slopes)

    def _matrix(self, dtype: torch.dtype) -> Tensor:
        if isinstance(self._weight, DenseWeight):
            return self._weight.data
        return self._ops.unpack_nf4(self._weight, dtype)


def concatenate(chunks: list[TokenScores]) -> TokenScores:
    """The scores of all chunks in order."""
    slopes = [chunk.slopes for chunk in chunks if chunk.slopes is not None]
    return TokenScores(
        torch.cat([chunk.log_probs for chunk in chunks]),
        torch.cat([chunk.entropies for chunk in chunks]),
        torch.cat([chunk.is_top for chunk in chunks]),
        torch.cat(slopes) if slopes else None,
    )
