"""Where each factor lies in a version's flat buffer.

For every touched projection, in the base's order: A of all touched slices stacked, [sum of R, K],
then B transposed of each slice, [R, N_slice], then a matrix that stands in for the base's. Real
ranks, nothing padded but the start of a matrix. Vectors follow all matrices, in float32 whatever
the dtype of the buffer, because an error in one of them shows in every token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from .module_spec import ModuleSpec
from .target import Projection

# Elements; 64 bytes in a 2-byte dtype, a cache line or more in any.
ALIGNMENT = 32
_VECTOR_ITEM = 4


@dataclass(frozen=True, slots=True)
class PartLayout:
    """One slice: its module, its B matrix and the columns of the projection that it writes.

    Without LoRA the module's rank is 0, and so is the length of its B. ``has_bias`` is the base's.
    """

    module: ModuleSpec
    b_offset: int
    first_rank: int
    first_column: int
    width: int
    has_bias: bool

    @property
    def shifts_output(self) -> bool:
        # DoRA does not scale the base's bias, which the scaled output contains.
        module = self.module
        return bool(module.bias or module.lora_bias or (module.magnitude and self.has_bias))

    @property
    def scales_output(self) -> bool:
        return bool(self.module.magnitude or self.module.output_scale)


@dataclass(frozen=True, slots=True)
class VectorLayout:
    """Offsets of the float32 vectors of one projection; None where it has none.

    ``input_scale`` is [K], ``output_scale`` and ``output_shift`` are [N], whole projections: a
    slice that the version leaves alone has scale 1 and shift 0.
    """

    input_scale: int | None = None
    output_scale: int | None = None
    output_shift: int | None = None


@dataclass(frozen=True, slots=True)
class ProjectionLayout:
    """One touched projection: ``index`` counts the base's projections.

    ``weight_offset`` is that of a matrix of ``weight_shape`` which stands in for the base's.
    """

    index: int
    kind: str
    a_offset: int
    num_ranks: int
    in_features: int
    out_features: int
    parts: tuple[PartLayout, ...]
    weight_offset: int | None = None
    weight_shape: tuple[int, int] = (0, 0)
    vectors: VectorLayout = field(default_factory=VectorLayout)


@dataclass(frozen=True, slots=True)
class FlatLayout:
    """Offsets in elements; the same on disk, in host memory and on the device.

    Matrices come first, and the last ``num_vector_elements`` hold vectors.
    """

    projections: tuple[ProjectionLayout, ...]
    num_elements: int
    num_vector_elements: int = 0

    @property
    def ranks(self) -> tuple[int, ...]:
        """Those of all slices that have LoRA."""
        return tuple(part.module.rank for part in self._parts() if part.module.rank)

    @property
    def needs_base(self) -> bool:
        """Whether filling a buffer looks at the base."""
        has_vectors = self.num_vector_elements > 0
        return has_vectors or any(part.module.base_copy for part in self._parts())

    @property
    def needs_norms(self) -> bool:
        """Whether that takes a pass over some of the base's weights, as DoRA does."""
        return any(part.module.magnitude for part in self._parts())

    def _parts(self) -> Iterator[PartLayout]:
        return (part for projection in self.projections for part in projection.parts)


def plan_layout(
    projections: Sequence[Projection], modules: Sequence[ModuleSpec], *, itemsize: int = 4
) -> FlatLayout:
    """``itemsize`` is that of the buffer's dtype, in bytes."""
    by_path = {module.path: module for module in modules}
    planned: list[ProjectionLayout] = []
    offset = 0
    for index, projection in enumerate(projections):
        touched = [part for part in projection.slices if part.path in by_path]
        if touched:
            layout, offset = _plan_projection(index, projection, by_path, offset)
            planned.append(layout)
    num_matrix_elements = offset
    for place, layout in enumerate(planned):
        planned[place], offset = _plan_vectors(layout, offset, _VECTOR_ITEM // itemsize)
    return FlatLayout(tuple(planned), offset, offset - num_matrix_elements)


def _plan_projection(
    index: int, projection: Projection, by_path: dict[str, ModuleSpec], offset: int
) -> tuple[ProjectionLayout, int]:
    modules = [by_path.get(part.path) for part in projection.slices]
    num_ranks = sum(module.rank for module in modules if module)
    a_offset = offset
    offset = _align(offset + num_ranks * projection.in_features)
    parts = []
    first_rank = first_column = 0
    weight_offset, weight_shape = None, (0, 0)
    for target, module in zip(projection.slices, modules, strict=True):
        if module:
            width, has_bias = target.out_features, target.has_bias
            parts.append(PartLayout(module, offset, first_rank, first_column, width, has_bias))
            offset = _align(offset + module.rank * target.out_features)
            first_rank += module.rank
            if module.weight:
                assert len(projection.slices) == 1
                weight_offset, weight_shape = offset, target.weight_shape
                offset = _align(offset + weight_shape[0] * weight_shape[1])
        first_column += target.out_features
    layout = ProjectionLayout(
        index,
        projection.kind,
        a_offset,
        num_ranks,
        projection.in_features,
        projection.out_features,
        tuple(parts),
        weight_offset,
        weight_shape,
    )
    return layout, offset


def _plan_vectors(layout: ProjectionLayout, offset: int, item: int) -> tuple[ProjectionLayout, int]:
    """Offsets of what the projection's modules need; a vector's element takes ``item`` of ours."""
    parts = layout.parts
    offsets: dict[str, int] = {}
    for name, length, is_needed in (
        ("input_scale", layout.in_features, any(part.module.input_scale for part in parts)),
        ("output_scale", layout.out_features, any(part.scales_output for part in parts)),
        ("output_shift", layout.out_features, any(part.shifts_output for part in parts)),
    ):
        if is_needed:
            offsets[name] = offset
            offset = _align(offset + length * item)
    return replace(layout, vectors=VectorLayout(**offsets)), offset


def _align(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
