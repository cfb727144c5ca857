"""A base plus one adapter, as the tensors of the checkpoint that will hold them."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from multiflora.adapters.merging.parent import Parent
from multiflora.adapters.target import TargetModule
from multiflora.kernels import nf4
from multiflora.kernels.quantize import nest

from ..errors import ExportRefused
from ..models.bnb_format import encode_linear, stored_specs, stored_tensors
from ..models.config import EMBEDDING
from ..models.plain_base import PlainBase
from ..models.tensor_file import TensorSpec
from .module_record import ModuleRecord, measure, norm


class MergedBase:
    """Makes every tensor when it is asked for, from W + ``weight`` * D in float32.

    ``dtype`` is that of the tensors; with ``requantize`` linears that an engine serves as NF4
    become NF4 again. ``records`` grow as linears are read.
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
        module = self._parent.modules.get(target.path)
        if module is None and self._is_nf4(target):
            return self._base.nf4_tensors(target, self._dtype)
        exact = self._base.linear(target)
        base_norm = norm(exact)
        delta = None
        if module is not None:
            delta = self._parent.delta(target.path).scaled(self._weight).dense()
            exact += delta
        if self._is_nf4(target):
            plain = encode_linear(name, exact)
            nested = nest(plain.absmax)
            parts = stored_tensors(name, plain, nested, self._dtype)
            stored = nf4.dequantize(replace(plain, absmax=nested.expand()))
        else:
            stored = self._rounded(name, exact)
            parts = {name: stored}
        self.records.append(
            measure(
                target.path,
                base_norm=base_norm,
                exact=exact,
                stored=stored,
                delta=delta,
                rank=module.rank if module else 0,
            )
        )
        return parts

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
