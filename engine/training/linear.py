"""A frozen matmul with trained factors: backward gives dX, dA and dB, never a gradient of the base.

The dense form of a quantized matrix lives inside one call; it is decoded again for dX instead of
being kept. The activation ``x`` and the shrunk rows are all that is saved.
"""

from typing import Any

import torch
from torch import Tensor

from multiflora.kernels.ops import LoraPart, Ops, Weight

from .dora import dora_matmul
from .dropout import Dropout
from .frozen_weight import FrozenWeight
from .projection_factors import ProjectionFactors, columns_of, ranks_of


class FrozenLinear:
    """One stacked projection of the resident base."""

    def __init__(self, ops: Ops, weight: Weight, bias: Tensor | None) -> None:
        self.weight = FrozenWeight(ops, weight, bias)

    def __call__(
        self, x: Tensor, factors: ProjectionFactors | None, dropout: Dropout | None
    ) -> Tensor:
        """``x @ W.T + bias`` as the factors change it, on dropped-out rows: x [T, K] -> [T, N]."""
        if factors is None:
            return _AdaptedMatmul.apply(x, self.weight, None, (), None)
        keep = dropout.mask(x) if dropout else None
        if factors.magnitudes:
            return dora_matmul(x, self.weight, factors, keep)
        bs = [part.b for part in factors.parts]
        return _AdaptedMatmul.apply(x, self.weight, factors.a, factors.parts, keep, *bs)


class _AdaptedMatmul(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: FrozenWeight,
        a: Tensor | None,
        parts: tuple[LoraPart, ...],
        keep: Tensor | None,
        *bs: Tensor,
    ) -> Tensor:
        ctx.weight, ctx.parts = weight, parts
        y = weight.multiply(x)
        if a is None:
            ctx.save_for_backward(None, None, None, None)
            return y
        shrunk = (x if keep is None else x * keep) @ a.to(x.dtype).T  # [T, sum of R]
        for part, b in zip(parts, bs, strict=True):
            delta = shrunk[:, ranks_of(part)]
            y[:, columns_of(part)].addmm_(delta, b.to(x.dtype), alpha=part.scale)
        ctx.save_for_backward(x, keep, shrunk, a, *bs)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        x, keep, shrunk, a, *bs = ctx.saved_tensors
        dx = ctx.weight.input_gradients(dy)[0] if ctx.needs_input_grad[0] else None
        if a is None:
            return dx, None, None, None, None
        dshrunk = torch.empty_like(shrunk)
        dbs: list[Tensor | None] = []
        for part, b in zip(ctx.parts, bs, strict=True):
            dy_part, ranks = dy[:, columns_of(part)], ranks_of(part)
            torch.mm(dy_part, b.to(dy.dtype).T, out=dshrunk[:, ranks]).mul_(part.scale)
            dbs.append((shrunk[:, ranks].T @ dy_part).float().mul_(part.scale))
        da = (dshrunk.T @ (x if keep is None else x * keep)).float()
        if dx is not None:
            if keep is None:
                dx.addmm_(dshrunk, a.to(dy.dtype))
            else:
                dx.addcmul_(dshrunk @ a.to(dy.dtype), keep)
        return dx, None, da, None, None, *dbs
