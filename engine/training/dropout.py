"""Dropout on the input of the factors, drawn again whenever a layer is run again."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .randomness import Place, tensor_stream


@dataclass(frozen=True, slots=True)
class Dropout:
    """Drops values with ``probability``; ``place`` names step, micro-batch, layer and projection.

    The slices of a stacked projection share one mask.
    """

    probability: float
    seed: int
    place: tuple[Place, ...]

    def at(self, *place: Place) -> "Dropout":
        return Dropout(self.probability, self.seed, (*self.place, *place))

    def mask(self, x: Tensor) -> Tensor:
        """0 or ``1 / (1 - probability)`` in x's shape and dtype."""
        kept = 1 - self.probability
        stream = tensor_stream(self.seed, "dropout", *self.place, device=x.device)
        return torch.empty_like(x).bernoulli_(kept, generator=stream).div_(kept)
