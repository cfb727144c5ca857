"""A version's weights as one tensor, and the views of it that kernels read."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from multiflora.kernels.adjustment import Adjustment
from multiflora.kernels.matrix_copy import MatrixCopies, MatrixCopy
from multiflora.kernels.ops import LoraFactors, LoraPart

from .folder import AdapterFolder
from .layout import FlatLayout, PartLayout, ProjectionLayout
from .tensor_file import DTYPES

Read = Callable[[str], Tensor]


def fill_buffer(layout: FlatLayout, read: Read, dtype: torch.dtype) -> Tensor:
    """Build the flat buffer [num_elements] of ``dtype`` from named PEFT tensors.

    Vectors depend on the base and are left at zero; ``fill_vectors`` fills them.
    """
    buffer = torch.zeros(layout.num_elements, dtype=dtype)
    for place in _places(layout):
        values = read(place.name)
        matrix = _matrix(buffer, place.offset, place.num_rows, place.num_columns)
        matrix.copy_(values.T if place.is_transposed else values)
    return buffer


def plan_copies(layout: FlatLayout, folder: AdapterFolder) -> MatrixCopies:
    """What ``fill_buffer`` does, for the weights file of ``folder`` and those of its outline."""
    entries = {entry.name: entry for entry in folder.entries}
    copies = []
    for place in _places(layout):
        entry = entries[place.name]
        shape = place.num_rows, place.num_columns
        assert entry.shape == (shape[::-1] if place.is_transposed else shape), entry
        start, dtype = folder.data_start + entry.start, DTYPES[entry.dtype]
        copies.append(MatrixCopy(start, place.offset, *shape, dtype, place.is_transposed))
    return MatrixCopies(copies)


class _Place(NamedTuple):
    """Where a tensor of the file goes: a matrix of the buffer, the tensor itself or transposed."""

    name: str
    offset: int
    num_rows: int
    num_columns: int
    is_transposed: bool = False


def _places(layout: FlatLayout) -> Iterator[_Place]:
    for projection in layout.projections:
        for part in projection.parts:
            module, width = part.module, projection.in_features
            if module.rank:
                start = projection.a_offset + part.first_rank * width
                yield _Place(module.a_name, start, module.rank, width)
                yield _Place(module.b_name, part.b_offset, module.rank, part.width, True)
            if module.weight:
                assert projection.weight_offset is not None
                yield _Place(module.weight, projection.weight_offset, *projection.weight_shape)


def lora_views(layout: FlatLayout, buffer: Tensor) -> dict[int, LoraFactors]:
    """Factors by projection index: views that share the buffer's memory."""
    return {p.index: _factors(p, buffer) for p in layout.projections if p.num_ranks}


def factor_views(layout: FlatLayout, buffer: Tensor) -> dict[int, LoraFactors]:
    """What the kernels' tables hold: ``lora_views`` but for the embedding's, which is looked up."""
    lookups = {p.index for p in layout.projections if p.kind == "embedding"}
    views = lora_views(layout, buffer)
    return {index: factors for index, factors in views.items() if index not in lookups}


def adjustment_views(layout: FlatLayout, buffer: Tensor) -> dict[int, Adjustment]:
    """What else the version changes, by projection index; empty for LoRA on linears.

    LoRA on the head is in ``factor_views``, but the head is named here too, since a step without
    any adapter on it is spared the plan for it.
    """
    found: dict[int, Adjustment] = {}
    for projection in layout.projections:
        is_embedding = projection.kind == "embedding"
        adjustment = Adjustment(
            **vector_views(projection, buffer),
            weight=None if projection.weight_offset is None else _weight(buffer, projection),
            lookup=_factors(projection, buffer) if is_embedding and projection.num_ranks else None,
        )
        if not adjustment.is_empty or projection.kind == "head":
            found[projection.index] = adjustment
    return found


def vector_views(projection: ProjectionLayout, buffer: Tensor) -> Mapping[str, Tensor]:
    """The float32 vectors of a projection by their field of ``Adjustment``."""
    lengths = {
        "input_scale": projection.in_features,
        "output_scale": projection.out_features,
        "output_shift": projection.out_features,
    }
    views: dict[str, Tensor] = {}
    for name, length in lengths.items():
        offset = getattr(projection.vectors, name)
        if offset is not None:
            size = length * torch.float32.itemsize // buffer.itemsize
            views[name] = buffer[offset : offset + size].view(torch.float32)
    return views


def _factors(projection: ProjectionLayout, buffer: Tensor) -> LoraFactors:
    parts = tuple(
        LoraPart(_b(buffer, part), part.first_rank, part.first_column, part.module.scale)
        for part in projection.parts
        if part.module.rank
    )
    return LoraFactors(_a(buffer, projection), parts)


def _a(buffer: Tensor, projection: ProjectionLayout) -> Tensor:
    return _matrix(buffer, projection.a_offset, projection.num_ranks, projection.in_features)


def _b(buffer: Tensor, part: PartLayout) -> Tensor:
    return _matrix(buffer, part.b_offset, part.module.rank, part.width)


def _weight(buffer: Tensor, projection: ProjectionLayout) -> Tensor:
    assert projection.weight_offset is not None
    return _matrix(buffer, projection.weight_offset, *projection.weight_shape)


def _matrix(buffer: Tensor, offset: int, num_rows: int, num_columns: int) -> Tensor:
    return buffer[offset : offset + num_rows * num_columns].view(num_rows, num_columns)
