"""Where each factor lies in a version's flat buffer.

For every touched projection, in the base's order: A of all touched slices stacked, [sum of R, K],
then B transposed of each slice, [R, N_slice]. Real ranks, nothing padded but the start of a matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .peft_format import ModuleSpec
from .target import Projection

# Elements; 64 bytes in a 2-byte dtype, a cache line or more in any.
ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class PartLayout:
    """One slice: its module, its B matrix and the columns of the projection that it writes."""

    module: ModuleSpec
    b_offset: int
    first_rank: int
    first_column: int
    width: int


@dataclass(frozen=True, slots=True)
class ProjectionLayout:
    """One touched projection: ``index`` counts the base's projections."""

    index: int
    a_offset: int
    num_ranks: int
    in_features: int
    parts: tuple[PartLayout, ...]


@dataclass(frozen=True, slots=True)
class FlatLayout:
    """Offsets in elements; the same on disk, in host memory and on the device."""

    projections: tuple[ProjectionLayout, ...]
    num_elements: int


def plan_layout(projections: Sequence[Projection], modules: Sequence[ModuleSpec]) -> FlatLayout:
    by_path = {module.path: module for module in modules}
    planned: list[ProjectionLayout] = []
    offset = 0
    for index, projection in enumerate(projections):
        touched = [part for part in projection.slices if part.path in by_path]
        if touched:
            layout, offset = _plan_projection(index, projection, by_path, offset)
            planned.append(layout)
    return FlatLayout(tuple(planned), offset)


def _plan_projection(
    index: int, projection: Projection, by_path: dict[str, ModuleSpec], offset: int
) -> tuple[ProjectionLayout, int]:
    modules = [by_path.get(part.path) for part in projection.slices]
    num_ranks = sum(module.rank for module in modules if module)
    a_offset = offset
    offset = _align(offset + num_ranks * projection.in_features)
    parts = []
    first_rank = first_column = 0
    for target, module in zip(projection.slices, modules, strict=True):
        if module:
            parts.append(PartLayout(module, offset, first_rank, first_column, target.out_features))
            offset = _align(offset + module.rank * target.out_features)
            first_rank += module.rank
        first_column += target.out_features
    layout = ProjectionLayout(index, a_offset, num_ranks, projection.in_features, tuple(parts))
    return layout, offset


def _align(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
