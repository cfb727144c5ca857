"""Matmul with segmented LoRA, as the mathematics reads."""

from torch import Tensor
from torch.nn import functional

from ..ops import DenseWeight, LoraFactors, LoraInput, Weight
from .nf4 import unpack_nf4


def linear(x: Tensor, weight: Weight, bias: Tensor | None, lora: LoraInput | None) -> Tensor:
    dense = weight.data if isinstance(weight, DenseWeight) else unpack_nf4(weight, x.dtype)
    y = functional.linear(x, dense, bias)
    if lora is None:
        return y
    deltas: list[tuple[slice, slice, Tensor]] = []
    for segment in lora.plan:
        factors = lora.table[segment.slot]
        if factors is not None:
            rows = slice(segment.start, segment.stop)
            deltas += [
                (rows, columns, segment.weight * delta)
                for columns, delta in _deltas(x[rows], factors)
            ]
    return _add(y, deltas)


def input_gradient(dy: Tensor, weight: Weight) -> Tensor:
    is_dense = isinstance(weight, DenseWeight)
    return dy @ (weight.data.to(dy.dtype) if is_dense else unpack_nf4(weight, dy.dtype))


def _deltas(x: Tensor, factors: LoraFactors) -> list[tuple[slice, Tensor]]:
    """Column range and float32 delta ``scale * (x @ A.T) @ B`` of each part."""
    shrunk = x.float() @ factors.a.float().T  # [rows, sum of R]
    found = []
    for part in factors.parts:
        rank, width = part.b.shape
        ranks = shrunk[:, part.first_rank : part.first_rank + rank]
        columns = slice(part.first_column, part.first_column + width)
        found.append((columns, part.scale * (ranks @ part.b.float())))
    return found


def _add(y: Tensor, deltas: list[tuple[slice, slice, Tensor]]) -> Tensor:
    # One rounding for all the deltas of a row, as in a fused epilogue.
    if not deltas:
        return y
    wide = y.float().clone()
    for rows, columns, delta in deltas:
        wide[rows, columns] += delta
    return wide.to(y.dtype)
