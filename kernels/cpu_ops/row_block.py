"""Matmul and LoRA by torch in row blocks of one fixed size: the path without the compiled core.

BLAS picks its kernel, and so its rounding, by the number of rows. Every call here has exactly
``ROWS`` rows, short blocks being padded; a row's result then depends on nothing but that row.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ..ops import LoraFactors

ROWS = 16


def pad_rows(x: Tensor) -> Tensor:
    """x [T, K] with room for a block that starts at any row; padding rows are dropped later."""
    return functional.pad(x, (0, 0, 0, 2 * ROWS))


def block_matmul(padded: Tensor, dense: Tensor, num_rows: int) -> Tensor:
    """``padded[:num_rows] @ dense.T`` -> [num_rows, N]."""
    if num_rows <= ROWS:
        return functional.linear(padded[:ROWS], dense)[:num_rows]
    num_blocks = -(-num_rows // ROWS)
    y = padded.new_empty(num_blocks * ROWS, dense.shape[0])
    for start in range(0, num_rows, ROWS):
        rows = slice(start, start + ROWS)
        torch.mm(padded[rows], dense.T, out=y[rows])
    return y[:num_rows]


def add_block_delta(
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
