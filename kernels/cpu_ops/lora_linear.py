"""Matmul with segmented LoRA in row blocks of one fixed size.

BLAS picks its kernel, and so its rounding, by the number of rows. Every call here has exactly
``ROWS`` rows, short blocks being padded; a row's result then depends on nothing but that row.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ..ops import DenseWeight, LoraFactors, LoraInput, Nf4Weight, Weight
from .nf4 import PACKED_LAYOUT, has_fast_bfloat16, packed_matmul, unpack_nf4

ROWS = 16


def linear(x: Tensor, weight: Weight, bias: Tensor | None, lora: LoraInput | None) -> Tensor:
    # The tail lets a block that starts at any row reach ROWS rows; what it computes is dropped.
    padded = functional.pad(x, (0, 0, 0, 2 * ROWS))
    y = _matmul(x, padded, weight)
    if bias is not None:
        y += bias
    if lora is not None:
        for segment in lora.segments:
            factors = lora.table[segment.slot]
            if factors is not None:
                _add_delta(y, padded, factors, segment.start, segment.stop, segment.weight)
    return y


def _matmul(x: Tensor, padded: Tensor, weight: Weight) -> Tensor:
    if isinstance(weight, Nf4Weight) and weight.layout == PACKED_LAYOUT:
        return packed_matmul(x, weight)
    dtype = _compute_dtype(x.dtype)
    dense = weight.data.to(dtype) if isinstance(weight, DenseWeight) else unpack_nf4(weight, dtype)
    return _blocked(padded.to(dtype), dense, x.shape[0]).to(x.dtype)


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 where the processor has no bf16 units: 5 times faster there, and more exact."""
    return dtype if dtype == torch.bfloat16 and has_fast_bfloat16() else torch.float32


def _blocked(padded: Tensor, dense: Tensor, num_rows: int) -> Tensor:
    if num_rows <= ROWS:
        return functional.linear(padded[:ROWS], dense)[:num_rows]
    num_blocks = -(-num_rows // ROWS)
    y = padded.new_empty(num_blocks * ROWS, dense.shape[0])
    for start in range(0, num_rows, ROWS):
        rows = slice(start, start + ROWS)
        torch.mm(padded[rows], dense.T, out=y[rows])
    return y[:num_rows]


def _add_delta(
    y: Tensor, padded: Tensor, factors: LoraFactors, start: int, stop: int, weight: float
) -> None:
    """Add one segment's delta in place, only to rows ``[start, stop)``."""
    for first in range(start, stop, ROWS):
        last = min(first + ROWS, stop)
        shrunk = functional.linear(padded[first : first + ROWS], factors.a)  # [ROWS, sum of R]
        for part in factors.parts:
            rank, width = part.b.shape
            delta = shrunk[:, part.first_rank : part.first_rank + rank] @ part.b  # [ROWS, N_slice]
            target = y[first:last, part.first_column : part.first_column + width]
            target.add_(delta[: last - first], alpha=weight * part.scale)
