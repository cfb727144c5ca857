"""The vectors of a version: computed once, when it is loaded, from its tensors and its base.

DoRA (arXiv 2402.09353) replaces W by ``m * (W + s B A) / |W + s B A|``, with a norm for each
output feature, and keeps the base's bias as it is.
"""

import torch
from torch import Tensor

from multiflora.kernels.ops import LoraFactors, LoraPart

from .base_view import ROW_MULTIPLE, BaseView
from .flat_buffer import Read, lora_views, vector_views
from .layout import FlatLayout, PartLayout, ProjectionLayout

# Bytes of the base that are decoded at a time.
_CHUNK_BYTES = 16 << 20


def fill_vectors(layout: FlatLayout, buffer: Tensor, read: Read, base: BaseView) -> None:
    """Fill the vectors of a flat buffer whose matrices are in place.

    Reads the base's weights once for every projection with DoRA.
    """
    factors = lora_views(layout, buffer)
    for projection in layout.projections:
        vectors = vector_views(projection, buffer)
        if "input_scale" in vectors:
            (part,) = projection.parts
            assert part.module.input_scale
            vectors["input_scale"].copy_(read(part.module.input_scale).view(-1))
        if "output_scale" in vectors or "output_shift" in vectors:
            scale = _output_scale(projection, factors.get(projection.index), read, base)
            shift = _output_shift(projection, scale, read, base.bias(projection.index))
            for name, values in (("output_scale", scale), ("output_shift", shift)):
                if name in vectors:
                    vectors[name].copy_(values)


def _output_scale(
    projection: ProjectionLayout, factors: LoraFactors | None, read: Read, base: BaseView
) -> Tensor:
    scale = torch.ones(projection.out_features)
    norms = None
    if any(part.module.magnitude for part in projection.parts):
        assert factors is not None
        is_embedding = projection.kind == "embedding"
        norms = (column_norms if is_embedding else row_norms)(projection, factors, base)
    for part in projection.parts:
        if name := part.module.magnitude:
            assert norms is not None
            scale[_columns(part)] = read(name).float().view(-1) / norms[_columns(part)]
        elif name := part.module.output_scale:
            scale[_columns(part)] = read(name).float().view(-1)
    return scale


def _output_shift(
    projection: ProjectionLayout, scale: Tensor, read: Read, bias: Tensor | None
) -> Tensor:
    """What turns ``scale * (... + bias)`` into the wanted bias, and B's own."""
    shift = torch.zeros(projection.out_features)
    resident = torch.zeros_like(shift) if bias is None else bias.float().cpu()
    for part in projection.parts:
        if not part.shifts_output:
            continue
        module, columns = part.module, _columns(part)
        wanted = read(module.bias).float() if module.bias else resident[columns]
        shift[columns] = wanted - scale[columns] * resident[columns]
        if module.lora_bias:
            shift[columns] += module.scale * read(module.lora_bias).float()
    return shift


def row_norms(projection: ProjectionLayout, factors: LoraFactors, base: BaseView) -> Tensor:
    """``|W + s B A|`` of every row, float32 [N] on the CPU; undefined where no part is near."""
    norms = torch.ones(projection.out_features)
    for start, stop in _chunks(projection.out_features, projection.in_features):
        near = [part for part in factors.parts if _overlap(part, start, stop)]
        if not near:
            continue
        weight = base.rows(projection.index, start, stop).clone()  # [rows, K]
        for part in near:
            rows = _overlap(part, start, stop)
            first, last = rows.start, rows.stop
            a = factors.a[part.first_rank : part.first_rank + part.b.shape[0]].to(weight)
            b = part.b[:, first - part.first_column : last - part.first_column].to(weight)
            weight[first - start : last - start] += part.scale * (b.T @ a)
        norms[start:stop] = torch.linalg.vector_norm(weight, dim=1).cpu()
    return norms


def column_norms(projection: ProjectionLayout, factors: LoraFactors, base: BaseView) -> Tensor:
    """``|E + s A.T B|`` of every column of an embedding [V, H], float32 [H] on the CPU."""
    (part,) = factors.parts
    squares = torch.zeros(projection.out_features, dtype=torch.float64)
    for start, stop in _chunks(projection.in_features, projection.out_features):
        rows = base.rows(projection.index, start, stop)  # [tokens, H]
        a, b = factors.a[:, start:stop].to(rows), part.b.to(rows)
        squares += (rows + part.scale * (a.T @ b)).double().square().sum(0).cpu()
    return squares.sqrt().float()


def _overlap(part: LoraPart, start: int, stop: int) -> range:
    """The rows of ``part`` within ``[start, stop)``."""
    return range(max(start, part.first_column), min(stop, part.first_column + part.b.shape[1]))


def _chunks(num_rows: int, width: int) -> list[tuple[int, int]]:
    rows = max(_CHUNK_BYTES // (4 * width) // ROW_MULTIPLE, 1) * ROW_MULTIPLE
    return [(start, min(start + rows, num_rows)) for start in range(0, num_rows, rows)]


def _columns(part: PartLayout) -> slice:
    return slice(part.first_column, part.first_column + part.width)
