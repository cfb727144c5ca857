"""Token embedding."""

from torch import Tensor
from torch.nn import functional


def embedding(ids: Tensor, table: Tensor) -> Tensor:
    return functional.embedding(ids, table)
