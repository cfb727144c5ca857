"""A base plus one adapter, as the tensors of the checkpoint that will hold them."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from multiflora.adapters.merging.parent import Parent
from multiflora.adapters.target import TargetModule
from multiflora.adapters.tensor_file import TensorSpec
from multiflora.kernels import nf4
from multiflora.kernels.quantize import nest

from ..errors import ExportRefused
from ..models.bnb_format import encode_linear, stored_specs, stored_tensors
from ..models.config import EMBEDDING, HEAD
from ..models.plain_base import PlainBase
from .module_record import ModuleRecord, measure, norm

_HEAD_PATH = HEAD.removesuffix(".weight")


class MergedBase:
    """Makes every tensor when it is asked for, from W + ``weight`` * D in float32.

    ``dtype`` is that of the tensors; with ``requantize`` linears that an engine serves as NF4
    become NF4 again. ``records`` grow as linears are read. Raises ``ExportRefused`` for a delta on
    a head that is tied to the embedding.
    """

    def __init__(
        self,
        base: PlainBase,
        parent: Parent,
        *,
        weight: float,
        dtype: torch.dtype,
        requantize: bool,
    ) -> None:
        self.records: list[ModuleRecord] = []
        if base.config.tie_embeddings and _HEAD_PATH in parent.modules:
            raise ExportRefused(
                f"{parent.name} adapts {_HEAD_PATH}, which this base shares with the embedding: "
                "no checkpoint can hold one delta for both; serve base and adapter unmerged"
            )
        self._base = base
        self._parent = parent
        self._weight = weight
        self._dtype = dtype
        self._requantize = requantize
        self._targets: dict[str, TargetModule] = {}
        self._ready: dict[str, Tensor] = {}

    def groups(self) -> Iterator[Mapping[str, TensorSpec]]:
        """What belongs into one file together: a tensor, or a weight with its companions."""
        linears = {f"{target.path}.weight": target for target in self._base.targets}
        for name in sorted([*self._base.dense_names(), *linears], key=_layer):
            if name not in linears:
                yield {name: TensorSpec(self._dtype, self._base.dense_shape(name))}
                continue
            specs = self._linear_specs(linears[name])
            self._targets |= dict.fromkeys(specs, linears[name])
            yield specs

    def read(self, name: str) -> Tensor:
        """A tensor of ``groups``, once. Raises ``ExportRefused`` for values beyond the dtype."""
        if name == HEAD and _HEAD_PATH in self._parent.modules:
            return self._merge(_HEAD_PATH, self._base.dense(name).float())
        if name not in self._targets:
            return self._rounded(name, self._base.dense(name))
        if name not in self._ready:
            self._ready |= self._linear(self._targets[name])
        return self._ready.pop(name)

    def _is_nf4(self, target: TargetModule) -> bool:
        return self._requantize and self._base.is_served_as_nf4(target)

    def _linear_specs(self, target: TargetModule) -> dict[str, TensorSpec]:
        name, shape = f"{target.path}.weight", (target.out_features, target.in_features)
        if not self._is_nf4(target):
            return {name: TensorSpec(self._dtype, shape)}
        is_adapted = target.path in self._parent.modules
        return stored_specs(name, shape) if is_adapted else self._base.nf4_specs(target)

    def _linear(self, target: TargetModule) -> dict[str, Tensor]:
        name = f"{target.path}.weight"
        if not self._is_nf4(target):
            return {name: self._merge(target.path, self._base.linear(target))}
        if target.path not in self._parent.modules:
            return self._base.nf4_tensors(target, self._dtype)
        base = self._base.linear(target)
        base_norm = norm(base)
        delta = self._delta(target.path)
        exact = base.add_(delta)
        plain = encode_linear(name, exact)
        nested = nest(plain.absmax)
        stored = nf4.dequantize(replace(plain, absmax=nested.expand()))
        self._record(target.path, base_norm, exact, stored, delta)
        return stored_tensors(name, plain, nested, self._dtype)

    def _merge(self, path: str, base: Tensor) -> Tensor:
        """``base`` [N, K] in float32, which is overwritten, with its delta in the dtype."""
        base_norm = norm(base)
        delta = self._delta(path) if path in self._parent.modules else None
        exact = base if delta is None else base.add_(delta)
        stored = self._rounded(f"{path}.weight", exact)
        self._record(path, base_norm, exact, stored, delta)
        return stored

    def _delta(self, path: str) -> Tensor:
        return self._parent.delta(path).scaled(self._weight).dense()

    def _record(
        self, path: str, base_norm: float, exact: Tensor, stored: Tensor, delta: Tensor | None
    ) -> None:
        rank = self._parent.modules[path].rank if delta is not None else 0
        record = measure(
            path, base_norm=base_norm, exact=exact, stored=stored, delta=delta, rank=rank
        )
        self.records.append(record)

    def _rounded(self, name: str, tensor: Tensor) -> Tensor:
        rounded = tensor.to(self._dtype)
        if not rounded.isfinite().all():
            raise ExportRefused(
                f"tensor {name} has values that {self._dtype} cannot hold; use --dtype bfloat16"
            )
        return rounded


def _layer(name: str) -> int:
    """Where a tensor is in the decoder's order: embedding, layers, norm and head."""
    if name.startswith("model.layers."):
        return int(name.split(".")[2])
    return -1 if name == EMBEDDING else 1 << 32
