# pyright: reportCallIssue=false
"""Gated activation."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .interpreter import INTERPRETED
from .rounding import round_to

# Not tuned on hardware yet.
BLOCK = 1024
NUM_WARPS = 4


@triton.jit
def silu_mul_kernel(gate_up, y, width, BLOCK: tl.constexpr, UPCAST: tl.constexpr):
    """y [T, width] = silu(gate) * up; grid (T, column blocks)."""
    dtype: tl.constexpr = y.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < width
    gate = tl.load(gate_up + row * 2 * width + cols, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + cols, mask=inside, other=0.0).to(tl.float32)
    # Rounded twice, as the two operations of the definition are.
    gate = round_to(gate / (1.0 + tl.exp(-gate)), dtype, UPCAST).to(tl.float32)
    tl.store(y + row * width + cols, round_to(gate * up, dtype, UPCAST), mask=inside)


def silu_mul(gate_up: Tensor) -> Tensor:
    """gate_up [T, 2 * I] -> [T, I]."""
    num_rows, both = gate_up.shape
    width = both // 2
    y = torch.empty((num_rows, width), dtype=gate_up.dtype, device=gate_up.device)
    if num_rows:
        silu_mul_kernel[(num_rows, triton.cdiv(width, BLOCK))](
            gate_up.contiguous(), y, width, BLOCK=BLOCK, UPCAST=INTERPRETED, num_warps=NUM_WARPS
        )
    return y
