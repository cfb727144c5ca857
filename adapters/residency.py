"""Versions on their way into device memory and into the tables that kernels read."""

from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from safetensors import safe_open
from torch import Tensor

from multiflora.kernels.ops import LoraTables

from .error import AdapterRejected
from .flat_buffer import factor_views, fill_buffer
from .folder import WEIGHTS_NAME
from .inspection import inspect_adapter
from .layout import FlatLayout, plan_layout
from .peft_format import ModuleSpec
from .slots import Readiness, SlotTable
from .store import AdapterStore
from .target import Projection


@dataclass(frozen=True, slots=True)
class LoadResult:
    """A finished load; ``error`` is None when the version is resident."""

    digest: str
    error: AdapterRejected | None


@dataclass(frozen=True, slots=True)
class _HostVersion:
    layout: FlatLayout
    buffer: Tensor

    @property
    def num_bytes(self) -> int:
        return self.buffer.numel() * self.buffer.element_size()


class Residency:
    """Loads versions in a background thread and places them in slots between steps.

    Only the engine's loop calls this; the thread touches nothing but the store and its own tensors.
    """

    def __init__(
        self,
        store: AdapterStore,
        projections: Sequence[Projection],
        tables: LoraTables,
        *,
        dtype: torch.dtype,
        device: torch.device,
        capacity_bytes: int,
    ) -> None:
        self.slots = SlotTable(capacity_bytes)
        self.tables = tables
        self._store = store
        self._projections = projections
        self._dtype = dtype
        self._device = device
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="adapter-load")
        self._loads: dict[str, Future[_HostVersion]] = {}
        self._loaded: dict[str, _HostVersion] = {}
        self._errors: dict[str, AdapterRejected] = {}

    def close(self) -> None:
        self._loader.shutdown(wait=True, cancel_futures=True)

    def prepare(self, digests: Iterable[str]) -> Readiness:
        """Start whatever loads are needed; raises ``AdapterRejected`` if one of them failed."""
        wanted = tuple(dict.fromkeys(digests))
        for digest in wanted:
            if digest in self._errors:
                raise self._errors[digest]
            if digest not in self.slots and digest not in self._loaded:
                self.start_load(digest)
        if any(digest in self._loads for digest in wanted):
            return Readiness.LOADING
        placed = [self._place(digest, keep=wanted) for digest in wanted if digest in self._loaded]
        if all(placed):
            return Readiness.READY
        self._check_fit(wanted)
        return Readiness.NO_ROOM

    def _check_fit(self, wanted: Collection[str]) -> None:
        """Refuse a blend whose parents can never be resident together."""
        needed = sum(
            self._loaded[d].num_bytes if d in self._loaded else self.slots.bytes_of(d)
            for d in wanted
        )
        if needed > self.slots.capacity_bytes:
            raise AdapterRejected(
                "adapter_too_large",
                f"the blend's versions need {needed} bytes together, --adapter-memory is "
                f"{self.slots.capacity_bytes}",
            )

    def start_load(self, digest: str) -> bool:
        """Begin loading, or report that there is nothing to load; forgets an earlier failure."""
        self._errors.pop(digest, None)
        if digest in self.slots or digest in self._loaded:
            return False
        if digest not in self._loads:
            self._loads[digest] = self._loader.submit(self._load, digest)
        return True

    def poll(self) -> list[LoadResult]:
        """Take in finished loads; called between steps."""
        finished = [digest for digest, load in self._loads.items() if load.done()]
        return [self._take(digest, self._loads.pop(digest)) for digest in finished]

    @property
    def is_loading(self) -> bool:
        return bool(self._loads)

    def lease(self, digests: Iterable[str]) -> None:
        for digest in digests:
            self.slots.lease(digest)

    def release(self, digests: Iterable[str]) -> None:
        for digest in digests:
            self.slots.release(digest)

    def unload(self, digest: str) -> bool:
        """Free an idle version's memory; False while it is leased."""
        self._loaded.pop(digest, None)
        self._errors.pop(digest, None)
        if digest in self._loads:
            return False
        if digest not in self.slots:
            return True
        if not self.slots.is_idle(digest):
            return False
        self.tables.clear(self.slots.slot_of(digest))
        self.slots.remove(digest)
        return True

    def _load(self, digest: str) -> _HostVersion:
        folder = self._store.open(digest)
        modules = inspect_adapter(folder, self._projections)
        _check_ranks(modules, self.tables.max_rank)
        layout = plan_layout(self._projections, modules)
        with safe_open(folder.path / WEIGHTS_NAME, framework="pt") as tensors:
            buffer = fill_buffer(layout, tensors.get_tensor, self._dtype)
        if not torch.isfinite(buffer).all():
            raise AdapterRejected(
                "not_finite", f"version {digest[:12]} overflows {self._dtype}; use --dtype bfloat16"
            )
        return _HostVersion(layout, buffer)

    def _take(self, digest: str, load: Future[_HostVersion]) -> LoadResult:
        try:
            version = load.result()
            if version.num_bytes > self.slots.capacity_bytes:
                raise AdapterRejected(
                    "adapter_too_large",
                    f"version {digest[:12]} needs {version.num_bytes} bytes, --adapter-memory is "
                    f"{self.slots.capacity_bytes}",
                )
        except AdapterRejected as error:
            self._errors[digest] = error
        except Exception as error:  # the loader thread's outer edge
            self._errors[digest] = AdapterRejected("load_failed", f"{digest[:12]}: {error}")
        else:
            self._keep(digest, version)
            # Evict nobody for it yet: the request that needs it knows which others must stay.
            self._place(digest, keep=self.slots.digests())
        return LoadResult(digest, self._errors.get(digest))

    def _keep(self, digest: str, version: _HostVersion) -> None:
        """Hold a version on the host until it is placed; the oldest beyond the budget go."""
        self._loaded[digest] = version
        held = sum(other.num_bytes for other in self._loaded.values())
        while held > self.slots.capacity_bytes:
            oldest = next(iter(self._loaded))
            held -= self._loaded.pop(oldest).num_bytes

    def _place(self, digest: str, *, keep: Collection[str]) -> bool:
        version = self._loaded[digest]
        placement = self.slots.place(digest, version.num_bytes, keep=keep)
        if placement is None:
            return False
        del self._loaded[digest]
        views = factor_views(version.layout, version.buffer.to(self._device))
        self.tables.write(placement.slot, views)
        return True


def _check_ranks(modules: Sequence[ModuleSpec], limit: int | None) -> None:
    widest = max(modules, key=lambda module: module.rank)
    if limit is not None and widest.rank > limit:
        raise AdapterRejected(
            "rank_too_large",
            f"{widest.path} has rank {widest.rank}, these kernels take {limit} at most; "
            "re-compress the adapter to a lower rank",
        )
