"""RMS normalisation with a frozen weight (arXiv 1910.07467); saves its input, a scale per row."""

from typing import Any

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As ``Ops.rms_norm``, differentiable in x [..., H]."""
    return _RmsNorm.apply(x, weight, eps)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, inverse)
        ctx.weight = weight
        return weight * (wide * inverse).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse = ctx.saved_tensors
        normed = x.float() * inverse
        dnormed = gradients[0].float() * ctx.weight.float()
        along = (dnormed * normed).mean(-1, keepdim=True)
        return ((dnormed - normed * along) * inverse).to(x.dtype), None, None
