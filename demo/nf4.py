"""NF4 rounding in plain torch, so that training can see the weights that will ship.

The gradient at the rounded weights updates the exact ones (straight-through).
"""

import torch
from torch import Tensor, nn

from multiflora.kernels.nf4 import BLOCK_SIZE, CODEBOOK


def rounded(weight: Tensor) -> Tensor:
    """Return the weight after a trip through NF4, blocks of 64 along the rows."""
    levels = torch.tensor(CODEBOOK)
    blocks = weight.reshape(-1, BLOCK_SIZE)
    scale = blocks.abs().amax(dim=1, keepdim=True).clamp_min(1e-12)
    codes = torch.bucketize(blocks / scale, (levels[1:] + levels[:-1]) / 2)
    return (levels[codes] * scale).reshape(weight.shape)


class RoundedForward:
    """Swaps rounded weights in for a forward and backward pass, and the exact ones back.

    The gradient at the rounded weight then updates the exact one (straight-through).
    """

    def __init__(self, module: nn.Module) -> None:
        linears = (child for child in module.modules() if isinstance(child, nn.Linear))
        self._weights = [linear.weight for linear in linears]
        self._exact: list[Tensor] = []

    def __enter__(self) -> None:
        self._exact = [weight.data for weight in self._weights]
        for weight in self._weights:
            weight.data = rounded(weight.data)

    def __exit__(self, *_: object) -> None:
        for weight, exact in zip(self._weights, self._exact, strict=True):
            weight.data = exact
