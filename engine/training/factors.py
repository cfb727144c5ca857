"""The trained factors: one flat float32 buffer in the layout of served versions, and a gradient."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multiflora.adapters.flat_buffer import factor_views, fill_buffer, vector_views
from multiflora.adapters.layout import FlatLayout, plan_layout
from multiflora.adapters.peft_format import ModuleSpec
from multiflora.adapters.target import Projection

from .projection_factors import ProjectionFactors, columns_of, ranks_of


@dataclass(frozen=True, slots=True)
class _Matrices:
    """One module with views of its A [R, K], its B transposed [R, N] and its magnitude [N]."""

    module: ModuleSpec
    a: Tensor
    b: Tensor
    magnitude: Tensor | None


class TrainedFactors:
    """A and B of every adapted module, as leaves whose gradients add up in ``gradient``.

    ``values`` and ``gradient`` are float32 [num_elements] in the offsets of ``FlatLayout``. DoRA's
    magnitudes lie where serving has the scale of outputs that follows from them. What belongs to no
    leaf stays zero. Without ``trainable`` there is no gradient: the reference of a preference run.
    """

    def __init__(
        self,
        projections: Sequence[Projection],
        modules: Sequence[ModuleSpec],
        *,
        device: torch.device,
        trainable: bool = True,
    ) -> None:
        self.layout: FlatLayout = plan_layout(projections, modules)
        self.values = torch.zeros(self.layout.num_elements, device=device)
        self.gradient = torch.zeros_like(self.values) if trainable else None
        self._views = _views(self.layout, self.values)
        if self.gradient is not None:
            _attach(self._views, _views(self.layout, self.gradient))

    def projection(self, index: int) -> ProjectionFactors | None:
        """The factors at one projection of the base, in ``ModelConfig.projections``'s order."""
        return self._views.get(index)

    @property
    def first_projection(self) -> int:
        """The lowest adapted projection; nothing below it needs a gradient."""
        return self.layout.projections[0].index

    def leaves(self) -> list[Tensor]:
        """A of every projection [sum of R, K], B [R, N_slice] and magnitude [N_slice] of every
        module."""
        return [leaf for view in self._views.values() for leaf in view.leaves]

    def boosted(self) -> list[slice]:
        """What LoRA+ has learn faster: B, and as in PEFT everything with one dimension."""
        found = []
        for planned in self.layout.projections:
            for part in planned.parts:
                size = part.module.rank * part.width
                found.append(slice(part.b_offset, part.b_offset + size))
            if (start := planned.vectors.output_scale) is not None:
                found.append(slice(start, start + planned.out_features))
        return found

    @torch.no_grad()
    def initialize(
        self,
        kind: str,
        stream_for: Callable[[str], torch.Generator],
        norms_of: Callable[[int], Tensor],
    ) -> None:
        """Draw A and zero B, so that training starts at the base; each module from its own stream.

        ``kaiming`` is PEFT's default, uniform within 1 / sqrt(K); ``gaussian`` has deviation 1 / R.
        A magnitude starts at the base's norms of rows, ``norms_of`` a projection: float32 [N].
        """
        self.values.zero_()
        for found in self._matrices(self.values):
            # Drawn on the CPU: the same start on every device.
            drawn = torch.empty(found.a.shape)
            stream = stream_for(found.module.path)
            if kind == "gaussian":
                drawn.normal_(std=1 / found.module.rank, generator=stream)
            else:
                bound = 1 / math.sqrt(found.a.shape[1])
                drawn.uniform_(-bound, bound, generator=stream)
            found.a.copy_(drawn)
        for planned in self.layout.projections:
            if planned.vectors.output_scale is not None:
                view = self._views[planned.index]
                norms = norms_of(planned.index)
                for part, magnitude in zip(view.parts, view.magnitudes, strict=True):
                    magnitude.copy_(norms[columns_of(part)])

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill from tensors with PEFT's names: A [R, K], B [N, R] and magnitude [N]."""
        self.values.copy_(fill_buffer(self.layout, tensors.__getitem__, torch.float32))
        for found in self._matrices(self.values):
            if found.magnitude is not None:
                assert found.module.magnitude is not None
                found.magnitude.copy_(tensors[found.module.magnitude])

    def tensors(self) -> dict[str, Tensor]:
        """float32 copies on the CPU under PEFT's names: A [R, K], B [N, R] and magnitude [N]."""
        return self._named(self.values)

    def gradients(self) -> dict[str, Tensor]:
        """What ``gradient`` holds, under PEFT's names."""
        assert self.gradient is not None
        return self._named(self.gradient)

    def _named(self, flat: Tensor) -> dict[str, Tensor]:
        named = {}
        for found in self._matrices(flat.detach().cpu()):
            named[found.module.a_name] = found.a.clone()
            named[found.module.b_name] = found.b.T.contiguous()
            if found.magnitude is not None:
                assert found.module.magnitude is not None
                named[found.module.magnitude] = found.magnitude.clone()
        return named

    def _matrices(self, flat: Tensor) -> Iterator[_Matrices]:
        views = _views(self.layout, flat)
        for planned in self.layout.projections:
            view = views[planned.index]
            for place, (part, placed) in enumerate(zip(view.parts, planned.parts, strict=True)):
                magnitude = view.magnitudes[place] if view.magnitudes else None
                yield _Matrices(placed.module, view.a[ranks_of(part)], part.b, magnitude)


def _views(layout: FlatLayout, flat: Tensor) -> dict[int, ProjectionFactors]:
    """Everything that is trained, by projection."""
    views = factor_views(layout, flat)
    found = {}
    for planned in layout.projections:
        view = views[planned.index]
        scale = vector_views(planned, flat).get("output_scale")
        magnitudes = () if scale is None else tuple(scale[columns_of(p)] for p in view.parts)
        found[planned.index] = ProjectionFactors(view.a, view.parts, magnitudes)
    return found


def _attach(
    values: Mapping[int, ProjectionFactors], gradients: Mapping[int, ProjectionFactors]
) -> None:
    """Make every view a leaf whose gradient is added to its place in the flat gradient."""
    for index, view in values.items():
        for leaf, gradient in zip(view.leaves, gradients[index].leaves, strict=True):
            leaf.requires_grad_()
            leaf.grad = gradient
