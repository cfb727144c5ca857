"""A frozen matmul with trained factors: backward gives dX, dA and dB, never a gradient of the base.

The dense form of a quantized matrix lives inside one call; it is decoded again for dX instead of
being kept. The activation ``x`` and the shrunk rows are all that is saved.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from multiflora.kernels.ops import DenseWeight, LoraFactors, LoraPart, Ops, Weight

from .dropout import Dropout

# Up to here a backend's own NF4 matmul beats decoding the matrix (CPU core: 128 rows 1.1 to 2.5
# times as fast as decode and GEMM, 512 rows equal, 2048 rows 0.5 to 0.9 times).
FUSED_ROWS = 256


class FrozenLinear:
    """One stacked projection of the resident base."""

    def __init__(self, ops: Ops, weight: Weight, bias: Tensor | None) -> None:
        self._ops = ops
        self._weight = weight
        self._bias = bias

    def __call__(self, x: Tensor, factors: LoraFactors | None, dropout: Dropout | None) -> Tensor:
        """``x @ W.T + bias`` plus the factors' delta on dropped-out rows: x [T, K] -> [T, N]."""
        if factors is None:
            return _AdaptedMatmul.apply(x, self, None, (), None)
        keep = dropout.mask(x) if dropout else None
        bs = [part.b for part in factors.parts]
        return _AdaptedMatmul.apply(x, self, factors.a, factors.parts, keep, *bs)

    def multiply(self, x: Tensor) -> Tensor:
        """``x @ W.T + bias``."""
        if isinstance(self._weight, DenseWeight) or x.shape[0] > FUSED_ROWS:
            return functional.linear(x, self.dense(x.dtype), self._bias)
        return self._ops.linear(x, self._weight, self._bias, None)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The matrix [N, K]; decoded for this call if it is quantized."""
        if isinstance(self._weight, DenseWeight):
            return self._weight.data
        return self._ops.unpack_nf4(self._weight, dtype)


class _AdaptedMatmul(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        linear: FrozenLinear,
        a: Tensor | None,
        parts: tuple[LoraPart, ...],
        keep: Tensor | None,
        *bs: Tensor,
    ) -> Tensor:
        ctx.linear, ctx.parts = linear, parts
        y = linear.multiply(x)
        if a is None:
            ctx.save_for_backward(None, None, None, None)
            return y
        shrunk = (x if keep is None else x * keep) @ a.to(x.dtype).T  # [T, sum of R]
        for part, b in zip(parts, bs, strict=True):
            y[:, _columns(part)].addmm_(shrunk[:, _ranks(part)], b.to(x.dtype), alpha=part.scale)
        ctx.save_for_backward(x, keep, shrunk, a, *bs)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        x, keep, shrunk, a, *bs = ctx.saved_tensors
        dx = dy @ ctx.linear.dense(dy.dtype) if ctx.needs_input_grad[0] else None
        if a is None:
            return dx, None, None, None, None
        dshrunk = torch.empty_like(shrunk)
        dbs: list[Tensor | None] = []
        for part, b in zip(ctx.parts, bs, strict=True):
            dy_part = dy[:, _columns(part)]
            torch.mm(dy_part, b.to(dy.dtype).T, out=dshrunk[:, _ranks(part)]).mul_(part.scale)
            dbs.append((shrunk[:, _ranks(part)].T @ dy_part).float().mul_(part.scale))
        da = (dshrunk.T @ (x if keep is None else x * keep)).float()
        if dx is not None:
            if keep is None:
                dx.addmm_(dshrunk, a.to(dy.dtype))
            else:
                dx.addcmul_(dshrunk @ a.to(dy.dtype), keep)
        return dx, None, da, None, None, *dbs


def _ranks(part: LoraPart) -> slice:
    return slice(part.first_rank, part.first_rank + part.b.shape[0])


def _columns(part: LoraPart) -> slice:
    return slice(part.first_column, part.first_column + part.b.shape[1])
