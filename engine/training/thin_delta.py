"""Between PEFT's factors and the deltas that merging works on."""

from collections.abc import Sequence

import torch
from torch import Tensor

from multiflora.adapters.merging.delta import Delta, combine
from multiflora.adapters.merging.rank_policy import RankPolicy
from multiflora.adapters.merging.recompress import recompress
from multiflora.adapters.module_spec import ModuleSpec

from .factors import TrainedFactors


def delta_of(a: Tensor, b: Tensor, scale: float) -> Delta:
    """A [R, K] and B [N, R] with their scale as one delta."""
    return Delta(b * scale, a)


def as_factors(delta: Delta, module: ModuleSpec) -> dict[str, Tensor]:
    """The delta under the module's names, at its rank and scale; ranks that it lacks are zero."""
    a, b = torch.zeros(module.rank, delta.a.shape[1]), torch.zeros(delta.b.shape[0], module.rank)
    a[: delta.rank] = delta.a
    b[:, : delta.rank] = delta.b / module.scale
    return {module.a_name: a, module.b_name: b}


def average(factors: TrainedFactors, values: Sequence[Tensor]) -> None:
    """Make ``factors`` the mean of ``values`` [num_elements] each, taken on their deltas.

    The mean of products is not the product of means; it is recompressed to the factors' ranks.
    """
    versions = []
    for flat in values:
        factors.values.data.copy_(flat)
        versions.append(factors.tensors())
    found: dict[str, Tensor] = {}
    for planned in factors.layout.projections:
        for placed in planned.parts:
            module = placed.module
            deltas = [delta_of(v[module.a_name], v[module.b_name], module.scale) for v in versions]
            mean = combine(deltas, [1 / len(deltas)] * len(deltas))
            found |= as_factors(recompress(mean, RankPolicy(rank=module.rank)).delta, module)
    factors.load(found)
