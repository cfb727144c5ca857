"""Token embedding."""

import torch
from torch import Tensor
from torch.nn import functional


def table_dtype(stored: torch.dtype, dtype: torch.dtype) -> torch.dtype:
    return dtype


def embedding(ids: Tensor, table: Tensor) -> Tensor:
    return functional.embedding(ids, table)
