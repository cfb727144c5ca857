"""Gated activation by the compiled core, or by torch in pieces that no thread splits."""

import torch
from torch import Tensor
from torch.nn import functional

from .core import core_for

# torch hands element-wise work of at least this many elements to several threads. A split inside a
# row would move the scalar tail of the vectorized exp, whose last bit differs.
SERIAL_ELEMENTS = 32_767


def silu_mul(gate_up: Tensor) -> Tensor:
    core = core_for(gate_up.dtype)
    return _serial_silu_mul(gate_up) if core is None else core.silu_mul(gate_up.contiguous())


def _serial_silu_mul(gate_up: Tensor) -> Tensor:
    num_rows, width = gate_up.shape
    out = gate_up.new_empty(num_rows, width // 2)
    step = max(1, SERIAL_ELEMENTS // (width // 2))
    for start in range(0, num_rows, step):
        rows = slice(start, start + step)
        gate, up = gate_up[rows].chunk(2, dim=-1)
        torch.mul(functional.silu(gate), up, out=out[rows])
    return out
