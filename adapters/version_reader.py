"""From a stored version to its flat buffer in host memory, in two moves.

The first reads the header and says how many bytes the second will allocate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .base_copy import check_base_copies
from .base_view import BaseView
from .error import AdapterRejected
from .folder import AdapterFolder
from .inspection import inspect_adapter
from .known_outlines import KnownOutlines, Recipe
from .layout import FlatLayout, plan_layout
from .mapped_tensors import MappedTensors
from .module_spec import ModuleSpec
from .store import AdapterStore
from .target import Projection
from .vector import fill_vectors


@dataclass(frozen=True, slots=True)
class PlannedVersion:
    """What a version will take: ``num_bytes`` on the device, ``host_bytes`` in host memory."""

    digest: str
    folder: AdapterFolder
    recipe: Recipe
    num_bytes: int
    host_bytes: int

    @property
    def layout(self) -> FlatLayout:
        return self.recipe.layout


@dataclass(frozen=True, slots=True)
class HostVersion:
    """A version's flat buffer [num_elements] in host memory."""

    layout: FlatLayout
    buffer: Tensor
    host_bytes: int

    @property
    def num_bytes(self) -> int:
        return self.buffer.numel() * self.buffer.element_size()


class Reader(Protocol):
    """How versions are read; called in loader threads."""

    def plan(self, digest: str) -> PlannedVersion:
        """Raises ``AdapterRejected`` or ``OSError``."""
        ...

    def read(self, planned: PlannedVersion) -> HostVersion:
        """Raises ``AdapterRejected`` or ``OSError``."""
        ...


class VersionReader:
    """Reads from the store in ``dtype``; ``is_pinned`` for memory that a device copies from.

    Versions are computed against ``base``; without one only those that need nothing of it are read.
    """

    def __init__(
        self,
        store: AdapterStore,
        projections: Sequence[Projection],
        *,
        dtype: torch.dtype,
        max_rank: int | None,
        is_pinned: bool,
        base: BaseView | None = None,
    ) -> None:
        self._store = store
        self._projections = projections
        self._dtype = dtype
        self._max_rank = max_rank
        self._is_pinned = is_pinned
        self._base = base
        self._known = KnownOutlines(self._layout)

    def plan(self, digest: str) -> PlannedVersion:
        folder = self._store.open(digest)
        recipe = self._known.recipe_of(folder)
        num_bytes = recipe.layout.num_elements * self._dtype.itemsize
        return PlannedVersion(digest, folder, recipe, num_bytes, self._host_bytes(num_bytes))

    def _layout(self, folder: AdapterFolder) -> FlatLayout:
        modules = inspect_adapter(folder, self._projections)
        _check_ranks(modules, self._max_rank)
        return plan_layout(self._projections, modules, itemsize=self._dtype.itemsize)

    def _host_bytes(self, num_bytes: int) -> int:
        # torch's allocator of pinned memory rounds up to a power of two.
        return 1 << (num_bytes - 1).bit_length() if self._is_pinned else num_bytes

    def read(self, planned: PlannedVersion) -> HostVersion:
        layout = planned.layout
        tensors = MappedTensors(planned.folder)
        size, dtype = layout.num_elements, self._dtype
        buffer = torch.zeros(size, dtype=dtype, pin_memory=self._is_pinned)
        planned.recipe.copies.run(tensors.file, buffer)
        if layout.needs_base:
            assert self._base is not None, "this version is computed against a base"
            check_base_copies(layout, tensors.get, self._base, dtype)
            fill_vectors(layout, buffer, tensors.get, self._base)
        _check_finite(planned.digest, layout, buffer)
        return HostVersion(layout, buffer, planned.host_bytes)


def _check_finite(digest: str, layout: FlatLayout, buffer: Tensor) -> None:
    first_vector = layout.num_elements - layout.num_vector_elements
    matrices, vectors = buffer[:first_vector], buffer[first_vector:].view(torch.float32)
    for part, problem in (
        (matrices, f"overflows {buffer.dtype}; use --dtype bfloat16"),
        (vectors, "scales or shifts an output by no finite number; was it trained on this base?"),
    ):
        # One pass without temporaries; a NaN is both extremes.
        if part.numel() and not torch.stack(torch.aminmax(part)).isfinite().all():
            raise AdapterRejected("not_finite", f"version {digest[:12]} {problem}")


def _check_ranks(modules: Sequence[ModuleSpec], limit: int | None) -> None:
    widest = max(modules, key=lambda module: module.rank)
    if limit is not None and widest.rank > limit:
        raise AdapterRejected(
            "rank_too_large",
            f"{widest.path} has rank {widest.rank}, these kernels take {limit} at most; "
            "re-compress the adapter to a lower rank",
        )
