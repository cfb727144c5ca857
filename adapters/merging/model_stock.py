"""Model Stock (Jang et al., 2024): the mean of all parents, drawn towards the base."""

import torch
from torch import Tensor

from .gram import cosine
from .spherical import Combination


def model_stock(inner: Tensor) -> Combination:
    """``t / n`` for each parent, with ``t`` from the mean cosine c: n c / (1 + (n - 1) c).

    The base is the origin of all deltas. Parents at right angles give nothing at all, and those
    that disagree, whose ``t`` would be negative, are taken to be at right angles. A zero delta is
    at right angles to all.
    """
    size = inner.shape[0]
    if size == 1:
        return Combination([1.0], "single-parent")
    pairs = torch.combinations(torch.arange(size)).tolist()
    mean = sum(cosine(inner, i, j) for i, j in pairs) / len(pairs)
    if mean <= 0:
        return Combination([0.0] * size, "orthogonal")
    t = size * mean / (1 + (size - 1) * mean)
    return Combination([t / size] * size, "model-stock")
