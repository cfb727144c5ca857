"""A frozen matmul with DoRA (arXiv 2402.09353): ``m / |W + s B A| * (W + s B A) x + bias``.

As in PEFT 0.21 the norm follows A and B and is a constant in the backward pass (section 4.3), the
bias is not scaled, and with dropout the part that moves sees dropped-out rows and the base whole
ones: ``W x + (g - 1) W x' + g s B A x' + bias`` with ``g`` the ratio and ``x'`` the dropped-out x.

``W + s B A`` never exists: its squared norm is ``|W|^2 + 2 s <W A.T, B> + s^2 <A A.T, B.T B>`` by
rows, where ``W A.T`` takes as much as the rank's worth of further token rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multiflora.kernels.ops import LoraPart

from .frozen_weight import FrozenWeight
from .projection_factors import ProjectionFactors, columns_of, ranks_of


def dora_matmul(
    x: Tensor, weight: FrozenWeight, factors: ProjectionFactors, keep: Tensor | None
) -> Tensor:
    """x [T, K] -> [T, N], differentiable in x, A, B and the magnitudes.

    ``keep`` [T, K] is the mask that drops out.
    """
    leaves = (*(part.b for part in factors.parts), *factors.magnitudes)
    return _DoraMatmul.apply(x, weight, factors.a, factors.parts, keep, *leaves)


class _DoraMatmul(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: FrozenWeight,
        a: Tensor,
        parts: tuple[LoraPart, ...],
        keep: Tensor | None,
        *leaves: Tensor,
    ) -> Tensor:
        ctx.weight, ctx.parts = weight, parts
        bs, magnitudes = leaves[: len(parts)], leaves[len(parts) :]
        rounded = a.to(x.dtype)
        if keep is None:
            moved = x
            z, near = weight.products(moved, rounded)  # [T, N], [sum of R, N]
            y = torch.empty_like(z)
        else:
            moved = x * keep
            y, z, near = weight.products(x, moved, rounded)
            y.sub_(z)
        norms = _norms(weight.row_norms(x.dtype), near, rounded, parts, bs)
        ratios = _ratios(norms, parts, magnitudes)
        shrunk = moved @ rounded.T  # [T, sum of R]
        for part, b in zip(parts, bs, strict=True):
            delta = shrunk[:, ranks_of(part)]
            z[:, columns_of(part)].addmm_(delta, b.to(x.dtype), alpha=part.scale)
        if keep is None:
            torch.mul(z, ratios, out=y)
        else:
            y.addcmul_(z, ratios.to(z.dtype))
        if weight.bias is not None:
            y.add_(weight.bias)
        ctx.save_for_backward(x, keep, shrunk, z, norms, ratios, a, *bs)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        x, keep, shrunk, z, norms, ratios, a, *bs = ctx.saved_tensors
        dmagnitudes = [_magnitude_slope(part, dy, z, norms) for part in ctx.parts]
        dz = dy * ratios.to(dy.dtype)
        dshrunk = torch.empty_like(shrunk)
        dbs: list[Tensor | None] = []
        for part, b in zip(ctx.parts, bs, strict=True):
            dz_part, ranks = dz[:, columns_of(part)], ranks_of(part)
            torch.mm(dz_part, b.to(dy.dtype).T, out=dshrunk[:, ranks]).mul_(part.scale)
            dbs.append((shrunk[:, ranks].T @ dz_part).float().mul_(part.scale))
        da = (dshrunk.T @ (x if keep is None else x * keep)).float()
        dx = None
        if ctx.needs_input_grad[0]:
            rounded = a.to(dy.dtype)
            if keep is None:
                dx = ctx.weight.input_gradients(dz)[0].addmm_(dshrunk, rounded)
            else:
                dmoved, dx = ctx.weight.input_gradients(dz.sub_(dy), dy)
                dx.addcmul_(dmoved.addmm_(dshrunk, rounded), keep)
        return dx, None, da, None, None, *dbs, *dmagnitudes


def _norms(
    base: Tensor, near: Tensor, a: Tensor, parts: Sequence[LoraPart], bs: Sequence[Tensor]
) -> Tensor:
    """``|W + s B A|`` of every row, float32 [N]; those of the base where no part writes.

    ``near`` [sum of R, N] is ``A @ W.T``.
    """
    norms = base.clone()
    for part, b in zip(parts, bs, strict=True):
        ranks, columns = ranks_of(part), columns_of(part)
        own, wide = a[ranks].float(), b.to(a.dtype).float()
        half = near[ranks, columns].float()
        # <W A.T, B> twice and <A A.T, B.T B>, with the scale of B in place
        half.mul_(2 * part.scale).addmm_(own @ own.T, wide, alpha=part.scale**2)
        square = norms[columns].square().add_(half.mul_(wide).sum(0))
        norms[columns] = square.clamp_min_(0).sqrt_()
    return norms


def _ratios(norms: Tensor, parts: Sequence[LoraPart], magnitudes: Sequence[Tensor]) -> Tensor:
    """``m / |W + s B A|``, float32 [N]; 1 where no part writes."""
    ratios = torch.ones_like(norms)
    for part, magnitude in zip(parts, magnitudes, strict=True):
        columns = columns_of(part)
        torch.div(magnitude, norms[columns], out=ratios[columns])
    return ratios


def _magnitude_slope(part: LoraPart, dy: Tensor, z: Tensor, norms: Tensor) -> Tensor:
    """The gradient of a magnitude, float32 [N_slice]."""
    columns = columns_of(part)
    return (dy[:, columns] * z[:, columns]).sum(0, dtype=torch.float32).div_(norms[columns])
