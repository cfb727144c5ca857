"""The gated activation: saves its input only."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def silu_mul(gate_up: Tensor) -> Tensor:
    """As ``Ops.silu_mul``, differentiable: gate_up [T, 2 * I] -> ``silu(gate) * up`` [T, I]."""
    return _SiluMul.apply(gate_up)


class _SiluMul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        (dy,) = gradients
        gate, up = gate_up.chunk(2, dim=-1)
        inner = gate_up.shape[-1] // 2
        dgate_up = torch.empty_like(gate_up)
        dgate, dup = dgate_up[:, :inner], dgate_up[:, inner:]
        torch.ops.aten.silu.out(gate, out=dup).mul_(dy)
        torch.ops.aten.silu_backward.grad_input(dy * up, gate, grad_input=dgate)
        return dgate_up
