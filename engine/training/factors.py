"""The trained factors: one flat float32 buffer in the layout of served versions, and a gradient."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from multiflora.adapters.flat_buffer import factor_views, fill_buffer
from multiflora.adapters.layout import FlatLayout, plan_layout
from multiflora.adapters.peft_format import ModuleSpec
from multiflora.adapters.target import Projection
from multiflora.kernels.ops import LoraFactors


class TrainedFactors:
    """A and B of every adapted module, as leaves whose gradients add up in ``gradient``.

    ``values`` and ``gradient`` are float32 [num_elements] in the offsets of ``FlatLayout``, so that
    the served copy of a trained version is one cast of ``values``. Alignment gaps stay zero.
    Without ``trainable`` there is no gradient: the reference of a preference run.
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
        self._views = factor_views(self.layout, self.values)
        if self.gradient is not None:
            _attach(self._views, factor_views(self.layout, self.gradient))

    def projection(self, index: int) -> LoraFactors | None:
        """The factors at one projection of the base, in ``ModelConfig.projections``'s order."""
        return self._views.get(index)

    @property
    def first_projection(self) -> int:
        """The lowest adapted projection; nothing below it needs a gradient."""
        return self.layout.projections[0].index

    def leaves(self) -> list[Tensor]:
        """A of every projection [sum of R, K] and B of every module [R, N_slice]."""
        views = self._views.values()
        return [view.a for view in views] + [part.b for view in views for part in view.parts]

    @torch.no_grad()
    def initialize(self, kind: str, stream_for: Callable[[str], torch.Generator]) -> None:
        """Draw A and zero B, so that training starts at the base; each module from its own stream.

        ``kaiming`` is PEFT's default, uniform within 1 / sqrt(K); ``gaussian`` has deviation 1 / R.
        """
        self.values.zero_()
        for module, a, _ in self._matrices(self.values):
            # Drawn on the CPU: the same start on every device.
            drawn = torch.empty(a.shape)
            stream = stream_for(module.path)
            if kind == "gaussian":
                drawn.normal_(std=1 / module.rank, generator=stream)
            else:
                bound = 1 / math.sqrt(a.shape[1])
                drawn.uniform_(-bound, bound, generator=stream)
            a.copy_(drawn)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill from tensors with PEFT's names: A [R, K] and B [N, R]."""
        self.values.copy_(fill_buffer(self.layout, tensors.__getitem__, torch.float32))

    def tensors(self) -> dict[str, Tensor]:
        """float32 copies on the CPU under PEFT's names: A [R, K] and B [N, R]."""
        return self._named(self.values)

    def gradients(self) -> dict[str, Tensor]:
        """What ``gradient`` holds, under PEFT's names."""
        assert self.gradient is not None
        return self._named(self.gradient)

    def _named(self, flat: Tensor) -> dict[str, Tensor]:
        named = {}
        for module, a, b in self._matrices(flat.detach().cpu()):
            named[module.a_name] = a.clone()
            named[module.b_name] = b.T.contiguous()
        return named

    def _matrices(self, flat: Tensor) -> Iterator[tuple[ModuleSpec, Tensor, Tensor]]:
        """Every module with its A [R, K] and its B transposed [R, N]."""
        views = factor_views(self.layout, flat)
        for planned in self.layout.projections:
            found = views[planned.index]
            for part, placed in zip(found.parts, planned.parts, strict=True):
                ranks = slice(part.first_rank, part.first_rank + part.b.shape[0])
                yield placed.module, found.a[ranks], part.b


def _attach(values: Mapping[int, LoraFactors], gradients: Mapping[int, LoraFactors]) -> None:
    """Make every view a leaf whose gradient is added to its place in the flat gradient."""
    for index, view in values.items():
        found = gradients[index]
        pairs = [(view.a, found.a)]
        pairs += [(p.b, g.b) for p, g in zip(view.parts, found.parts, strict=True)]
        for leaf, gradient in pairs:
            leaf.requires_grad_()
            leaf.grad = gradient
