"""Fresh ranks beside frozen ones, in one set of factors.

The old version's ranks come first in every module. They serve every pass like the fresh ones, and
their gradient is cleared before a step: what is trained is a delta of its own, in the presence of
all that is known already, and each checkpoint is an ordinary adapter with both.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from multiflora.adapters.flat_buffer import factor_views
from multiflora.adapters.merging.delta import combine
from multiflora.adapters.merging.rank_policy import RankPolicy
from multiflora.adapters.merging.recompress import recompress

from ..models.config import ModelConfig
from .config import LoraSettings, TrainingSettings
from .factors import TrainedFactors
from .thin_delta import as_factors, delta_of


def grown_lora(settings: TrainingSettings, model: ModelConfig) -> LoraSettings:
    """The LoRA settings of what is trained: those of the version, with room for fresh ranks.

    Every module keeps its scale, so that the old factors mean what they meant.
    """
    lora, continual = settings.lora, settings.continual
    if continual.mode == "continue":
        return lora
    fresh = continual.merge_rank or lora.rank
    ranks, alphas = {}, {}
    for module in lora.modules(model):
        rank = module.rank + fresh
        ranks[module.path] = rank
        alphas[module.path] = module.scale * (math.sqrt(rank) if lora.use_rslora else rank)
    rank = lora.rank + fresh
    growth = rank / lora.rank
    alpha = lora.alpha * (math.sqrt(growth) if lora.use_rslora else growth)
    if not (lora.rank_pattern or lora.alpha_pattern):
        return replace(lora, rank=rank, alpha=alpha)
    return replace(lora, rank=rank, alpha=alpha, rank_pattern=ranks, alpha_pattern=alphas)


class FrozenRanks:
    """The first ranks of every module of ``factors``: those of ``start``, under PEFT's names."""

    def __init__(self, factors: TrainedFactors, start: Mapping[str, Tensor]) -> None:
        self._factors = factors
        self._is_fresh = torch.ones_like(factors.values)
        self._count: dict[str, int] = {}
        for planned in factors.layout.projections:
            view = factor_views(factors.layout, self._is_fresh)[planned.index]
            for part, placed in zip(view.parts, planned.parts, strict=True):
                count = start[placed.module.a_name].shape[0]
                self._count[placed.module.path] = count
                view.a[part.first_rank : part.first_rank + count] = 0
                part.b[:count] = 0

    def load(self, start: Mapping[str, Tensor]) -> None:
        """Put the old version's factors in place; the fresh ones stay as they were drawn."""
        tensors = self._factors.tensors()
        for planned in self._factors.layout.projections:
            for placed in planned.parts:
                module, count = placed.module, self._count[placed.module.path]
                tensors[module.a_name][:count] = start[module.a_name]
                tensors[module.b_name][:, :count] = start[module.b_name]
        self._factors.load(tensors)

    @torch.no_grad()
    def guard(self, orthogonality: float) -> float:
        """Clear the gradient of the frozen ranks; add and return the penalty on fresh ones."""
        gradient = self._factors.gradient
        assert gradient is not None
        penalty = self._penalize(orthogonality) if orthogonality else 0.0
        gradient.mul_(self._is_fresh)
        return penalty

    def _penalize(self, weight: float) -> float:
        assert self._factors.gradient is not None
        gradients = factor_views(self._factors.layout, self._factors.gradient)
        values = factor_views(self._factors.layout, self._factors.values)
        total = torch.zeros((), device=self._factors.values.device)
        for planned in self._factors.layout.projections:
            view, slope = values[planned.index], gradients[planned.index]
            for part, placed in zip(view.parts, planned.parts, strict=True):
                first, count = part.first_rank, self._count[placed.module.path]
                stop = first + part.b.shape[0]
                old, new = view.a[first : first + count], view.a[first + count : stop]
                overlap = new @ old.T  # [fresh, old]
                total += overlap.abs().sum()
                slope.a[first + count : stop].add_(overlap.sign() @ old, alpha=weight)
        return weight * float(total)

    def merged(self, lora: LoraSettings, model: ModelConfig, weight: float) -> TrainedFactors:
        """Old plus ``weight`` times fresh, recompressed to the ranks of ``lora``."""
        tensors = self._factors.tensors()
        modules = lora.modules(model)
        found: dict[str, Tensor] = {}
        for module in modules:
            a, b, count = tensors[module.a_name], tensors[module.b_name], self._count[module.path]
            old = delta_of(a[:count], b[:, :count], module.scale)
            fresh = delta_of(a[count:], b[:, count:], module.scale)
            merged = recompress(combine([old, fresh], [1.0, weight]), RankPolicy(rank=module.rank))
            found |= as_factors(merged.delta, module)
        result = TrainedFactors(
            model.projections(), modules, device=self._factors.values.device, trainable=False
        )
        result.load(found)
        return result
