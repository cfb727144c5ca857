"""A base as dense tensors, one at a time, under the names that transformers gives them."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from multiflora.adapters.target import TargetModule
from multiflora.adapters.tensor_file import TensorSpec
from multiflora.kernels import nf4
from multiflora.kernels.quantize import double_quantize, nest

from ..errors import InvalidCheckpoint
from .bnb_format import (
    encode_linear,
    is_quantized,
    stored_specs,
    stored_tensors,
    take_nf4,
)
from .checkpoint import Checkpoint
from .config import EMBEDDING, HEAD
from .registry import load_model_config


class PlainBase:
    """Reads the checkpoint in ``folder``.

    Linears are as an engine with NF4 holds them (``quantized``: quantized, and decoded again), or
    as the checkpoint stores them. Raises `InvalidCheckpoint` and `UnsupportedModel`, as a start of
    the server would.
    """

    def __init__(self, folder: Path, *, quantized: bool = True) -> None:
        self.folder = folder
        self.config = load_model_config(folder)
        self.quantized = quantized
        self.targets: tuple[TargetModule, ...] = tuple(
            target for projection in self.config.projections() for target in projection.slices
        )
        self._checkpoint = Checkpoint.open(folder)
        self._dense_shapes = self.config.dense_shapes()

    @property
    def progress(self) -> float:
        """Share of the checkpoint's bytes that were read, 0 to 1."""
        return self._checkpoint.progress

    def is_stored_as_nf4(self, target: TargetModule) -> bool:
        return is_quantized(self._checkpoint, f"{target.path}.weight")

    def is_served_as_nf4(self, target: TargetModule) -> bool:
        """Whether an engine quantizes the linear; a pre-quantized checkpoint has decided that."""
        return self.is_stored_as_nf4(target) or not self.config.prequantized

    def linear(self, target: TargetModule) -> Tensor:
        """The weight of ``target``, float32 [N, K]."""
        name, shape = f"{target.path}.weight", (target.out_features, target.in_features)
        if self.is_stored_as_nf4(target):
            return nf4.dequantize(take_nf4(self._checkpoint, name, shape))
        if self.quantized and self.is_served_as_nf4(target):
            plain = encode_linear(name, self._checkpoint.take_float(name, shape))
            return nf4.dequantize(replace(plain, absmax=double_quantize(plain.absmax)))
        return self._checkpoint.take_float(name, shape).float()

    def nf4_tensors(self, target: TargetModule, dtype: torch.dtype) -> dict[str, Tensor]:
        """The linear as the engine holds it, in bitsandbytes' form; see ``nf4_specs``.

        What the checkpoint stores that way is passed on; only the codes are always uint8.
        """
        name, shape = f"{target.path}.weight", (target.out_features, target.in_features)
        if not self.is_stored_as_nf4(target):
            plain = encode_linear(name, self._checkpoint.take_float(name, shape))
            return stored_tensors(name, plain, nest(plain.absmax), dtype)
        codes = self._checkpoint.take(name).reshape(-1).view(torch.uint8).reshape(-1, 1)
        beside = self._checkpoint.companions(name)
        return {name: codes} | {other: self._checkpoint.take(other) for other in beside}

    def nf4_specs(self, target: TargetModule) -> dict[str, TensorSpec]:
        name = f"{target.path}.weight"
        specs = stored_specs(name, (target.out_features, target.in_features))
        if not self.is_stored_as_nf4(target):
            return specs
        return {name: specs[name]} | self._checkpoint.companions(name)

    def dense_names(self) -> tuple[str, ...]:
        """Every tensor that is no linear's weight."""
        return tuple(self._dense_shapes)

    def dense_shape(self, name: str) -> tuple[int, ...]:
        return self._dense_shapes[name]

    def dense(self, name: str) -> Tensor:
        """One of ``dense_names``, in the dtype that it is stored in; float32 if that is NF4."""
        shape = self._dense_shapes[name]
        if name == HEAD and is_quantized(self._checkpoint, name):
            return nf4.dequantize(take_nf4(self._checkpoint, name, (shape[0], shape[1])))
        if name == EMBEDDING and self.config.tie_embeddings:
            return self._tied_embedding(shape)
        return self._checkpoint.take_float(name, shape)

    def _tied_embedding(self, shape: tuple[int, ...]) -> Tensor:
        names = [name for name in (EMBEDDING, HEAD) if name in self._checkpoint] or [EMBEDDING]
        tables = [self._checkpoint.take_float(name, shape) for name in names]
        if not torch.equal(tables[0], tables[-1]):
            raise InvalidCheckpoint(
                f"config.json ties the embeddings, but tensor {HEAD} differs from {EMBEDDING}"
            )
        return tables[0]

    def check_all_read(self) -> None:
        """Raise `InvalidCheckpoint` naming tensors that the model has no place for."""
        self._checkpoint.check_all_taken()
