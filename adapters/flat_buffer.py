"""A version's weights as one tensor, and the factor views that kernels read."""

from collections.abc import Callable

import torch
from torch import Tensor

from multiflora.kernels.ops import LoraFactors, LoraPart

from .layout import FlatLayout, PartLayout, ProjectionLayout


def fill_buffer(
    layout: FlatLayout,
    read: Callable[[str], Tensor],
    dtype: torch.dtype,
    *,
    is_pinned: bool = False,
) -> Tensor:
    """Build the flat buffer [num_elements] of ``dtype`` from named PEFT tensors."""
    buffer = torch.zeros(layout.num_elements, dtype=dtype, pin_memory=is_pinned)
    for projection in layout.projections:
        a = _matrix(buffer, projection.a_offset, projection.num_ranks, projection.in_features)
        for part in projection.parts:
            rank = part.module.rank
            a[part.first_rank : part.first_rank + rank].copy_(read(part.module.a_name))
            _b(buffer, part).copy_(read(part.module.b_name).T)
    return buffer


def factor_views(layout: FlatLayout, buffer: Tensor) -> dict[int, LoraFactors]:
    """Factors by projection index; views that share the buffer's memory."""
    return {p.index: _factors(p, buffer) for p in layout.projections}


def _factors(projection: ProjectionLayout, buffer: Tensor) -> LoraFactors:
    a = _matrix(buffer, projection.a_offset, projection.num_ranks, projection.in_features)
    parts = tuple(
        LoraPart(_b(buffer, part), part.first_rank, part.first_column, part.module.scale)
        for part in projection.parts
    )
    return LoraFactors(a, parts)


def _b(buffer: Tensor, part: PartLayout) -> Tensor:
    return _matrix(buffer, part.b_offset, part.module.rank, part.width)


def _matrix(buffer: Tensor, offset: int, num_rows: int, num_columns: int) -> Tensor:
    return buffer[offset : offset + num_rows * num_columns].view(num_rows, num_columns)
