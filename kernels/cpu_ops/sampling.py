"""Draws from rows of logits, by the compiled core or by torch."""

import torch
from torch import Tensor

from .. import torch_ops
from .core import Core, core_for


def peaks(logits: Tensor) -> tuple[Tensor, Tensor]:
    core = _core(logits)
    return torch_ops.peaks(logits) if core is None else core.peaks(logits.contiguous())


def top_k(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    core = _core(logits)
    if core is None:
        return torch_ops.top_k(logits, count)
    return core.top_k(logits.contiguous(), count)


def weight_sums(logits: Tensor, temperatures: Tensor) -> Tensor:
    core = _core(logits)
    if core is None:
        return torch_ops.weight_sums(logits, temperatures)
    return core.weight_sums(logits.contiguous(), temperatures.contiguous())


def draw(logits: Tensor, temperatures: Tensor, points: Tensor) -> Tensor:
    core = _core(logits)
    if core is None:
        return torch_ops.draw(logits, temperatures, points)
    return core.draw(logits.contiguous(), temperatures.contiguous(), points.contiguous())


def _core(logits: Tensor) -> Core | None:
    return core_for(logits.dtype) if logits.dtype == torch.float32 else None
