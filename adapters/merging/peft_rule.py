"""What PEFT 0.21.2 makes of adapters under its own names, to reproduce earlier merges.

Its ``linear``, ``ties`` and ``magnitude_prune`` work on A and B by themselves: the product then has
cross-terms, and depends on how each parent happens to be factored.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..error import AdapterRejected
from .delta import Delta, combine
from .element_wise import keep_largest
from .rank_policy import RankPolicy
from .recompress import Recompressed, recompress, truncate


@dataclass(frozen=True, slots=True)
class Factors:
    """A and B of one module as PEFT holds them, its scale, and the weight in the merge."""

    b: Tensor
    a: Tensor
    scale: float
    weight: float

    def delta(self) -> Delta:
        return Delta(self.b * self.scale, self.a)


def merge_as_peft(
    parents: Sequence[Factors], name: str, *, density: float, rank: RankPolicy
) -> Recompressed:
    """Merge the parents that have the module. ``name`` is PEFT's combination type.

    Raises ``AdapterRejected`` for factors of unequal ranks, where PEFT refuses them too.
    """
    weights = [parent.weight for parent in parents]
    if len(parents) == 1 and name == "linear":
        return Recompressed(parents[0].delta().scaled(weights[0]), 1.0)
    if name in ("cat", "svd"):
        total = combine([parent.delta() for parent in parents], weights)
        return recompress(total, rank)
    if name.endswith("_svd"):
        dense = [parent.delta().dense() for parent in parents]
        return truncate(_join(dense, weights, name.removesuffix("_svd"), density), rank)
    return Recompressed(_merge_factors(parents, name, density), 1.0)


def _merge_factors(parents: Sequence[Factors], name: str, density: float) -> Delta:
    ranks = sorted({parent.a.shape[0] for parent in parents})
    if len(ranks) > 1:
        raise AdapterRejected(
            "different_ranks",
            f"PEFT's {name} adds factors and needs equal ranks, these are {ranks}; use {name} "
            "without peft_compat, which merges any",
        )
    scaled = [parent.weight * parent.scale for parent in parents]
    roots = [math.sqrt(abs(one)) for one in scaled]
    signed = [math.copysign(root, one) for root, one in zip(roots, scaled, strict=True)]
    b = _join([parent.b for parent in parents], roots, name, density)
    a = _join([parent.a for parent in parents], signed, name, density)
    return Delta(b, a)


def _join(tensors: Sequence[Tensor], weights: Sequence[float], name: str, density: float) -> Tensor:
    if name != "linear":
        # PEFT counts down: int(density * size) entries stay.
        tensors = [keep_largest(t, int(density * t.numel()) / t.numel()) for t in tensors]
    stacked = torch.stack(list(tensors))
    weighted = stacked * torch.tensor(weights)[:, None, None]
    if name != "ties":
        return weighted.sum(0)
    majority = torch.where(stacked.sum(0) >= 0, 1, -1)
    agrees = stacked.sign() == majority
    return (weighted * agrees).sum(0) / agrees.sum(0).clamp(min=1)
