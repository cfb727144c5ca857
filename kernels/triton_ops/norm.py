# pyright: reportCallIssue=false, reportArgumentType=false
"""RMS normalisation (arXiv 1910.07467), one row per program."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .interpreter import INTERPRETED
from .rounding import round_to

MAX_WIDTH = 16384
# Elements of a row for each warp; not tuned on hardware yet.
_WARP_ELEMENTS = 512
_MAX_WARPS = 16


@triton.jit
def rms_norm_kernel(
    x,
    residual,
    weight,
    y,
    total,
    eps,
    H,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """y [rows, H] = the norm of x, or of ``total = residual + x`` with ``ADD``; grid (rows,)."""
    dtype: tl.constexpr = y.dtype.element_ty
    first = tl.program_id(0).to(tl.int64) * H
    cols = tl.arange(0, BLOCK)
    inside = cols < H
    wide = tl.load(x + first + cols, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        wide += tl.load(residual + first + cols, mask=inside, other=0.0).to(tl.float32)
        # The norm reads what the next layer's residual will be, not something more precise.
        rounded = round_to(wide, dtype, UPCAST)
        tl.store(total + first + cols, rounded, mask=inside)
        wide = rounded.to(tl.float32)
    scaled = wide * tl.rsqrt(tl.sum(wide * wide) / H + eps)
    scaled = round_to(scaled, dtype, UPCAST).to(tl.float32)
    factor = tl.load(weight + cols, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + first + cols, round_to(factor * scaled, dtype, UPCAST), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., H], weight [H] -> [..., H]; H at most 16384."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    _launch(x.contiguous(), None, weight, y, None, eps)
    return y


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x, residual [..., H] -> (norm of their sum, their sum rounded to x's dtype)."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    total = torch.empty_like(y)
    _launch(x.contiguous(), residual.contiguous(), weight, y, total, eps)
    return y, total


def _launch(
    x: Tensor, residual: Tensor | None, weight: Tensor, y: Tensor, total: Tensor | None, eps: float
) -> None:
    width = x.shape[-1]
    assert width <= MAX_WIDTH
    if not x.numel():
        return
    block = triton.next_power_of_2(width)
    rms_norm_kernel[(x.numel() // width,)](
        x,
        x if residual is None else residual,
        weight,
        y,
        y if total is None else total,
        eps,
        width,
        BLOCK=block,
        ADD=residual is not None,
        UPCAST=INTERPRETED,
        num_warps=norm_warps(block),
    )


def norm_warps(block: int) -> int:
    return min(max(block // _WARP_ELEMENTS, 1), _MAX_WARPS)
