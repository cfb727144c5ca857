"""The prepared form of a base on disk: packed tensors in a safetensors file that loads by mapping.

Beside ``<key>.safetensors`` lies ``<key>.json``, written last: it vouches for the content.
"""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multiflora.adapters import durable
from multiflora.adapters.tensor_file import DTYPE_NAMES, DTYPES, write_tensors
from multiflora.kernels.ops import DenseWeight, Nf4Weight, Weight

from ..errors import InvalidCheckpoint
from .digest import FileDigests, replace_text
from .shard import read_shard
from .tensor_file import map_tensors
from .weights import BaseWeights, LayerWeights

logger = logging.getLogger(__name__)

# Part of every key: raised when the meaning of the stored bytes changes.
FORMAT = 2


class PreparedStore:
    """Prepared bases by content key. A damaged one is logged and counts as absent."""

    def __init__(self, folder: Path, digests: FileDigests) -> None:
        self._folder = folder
        self._digests = digests

    def load(self, key: str, device: torch.device) -> BaseWeights | None:
        """Map the base stored under ``key`` and move it to ``device``, or return None."""
        path = self._path(key)
        if not self._voucher(key).is_file():
            return None
        try:
            voucher = json.loads(self._voucher(key).read_text())
            if self._digests.digest(path) != voucher["sha256"]:
                raise InvalidCheckpoint(f"{path} changed after it was written")
            shard = read_shard(path)
            return _restore(map_tensors(shard), json.loads(shard.metadata["base"]), device)
        except (InvalidCheckpoint, OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("prepared base is damaged and will be rebuilt: %s", error)
            return None

    def save(self, key: str, weights: BaseWeights) -> None:
        """Store ``weights``; a full or read-only disk is logged, since nothing depends on it."""
        path = self._path(key)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            self._voucher(key).unlink(missing_ok=True)
            write_tensors(temporary, _tensors(weights), {"base": json.dumps(_describe(weights))})
            temporary.replace(path)
            durable.sync(self._folder)
            replace_text(self._voucher(key), json.dumps({"sha256": self._digests.digest(path)}))
        except OSError as error:
            temporary.unlink(missing_ok=True)
            logger.warning("prepared base could not be stored in %s: %s", self._folder, error)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"

    def _voucher(self, key: str) -> Path:
        return self._folder / f"{key}.json"


def _tensors(weights: BaseWeights) -> dict[str, Tensor]:
    stored = dict(weights.tensors())
    if _is_tied(weights):
        del stored["head"]
    return stored


def _is_tied(weights: BaseWeights) -> bool:
    return isinstance(weights.head, DenseWeight) and weights.head.data is weights.embedding


def _describe(weights: BaseWeights) -> dict[str, Any]:
    return {
        "digest": weights.digest,
        "num_layers": len(weights.layers),
        "tied": _is_tied(weights),
        "packed": {
            name: {
                "layout": part.layout,
                "parts": list(part.tensors),
                "out_features": part.out_features,
                "in_features": part.in_features,
                "dtype": DTYPE_NAMES[part.dtype],
            }
            for name, part in weights.named_parts()
            if isinstance(part, Nf4Weight)
        },
    }


def _restore(
    stored: Mapping[str, Tensor], about: dict[str, Any], device: torch.device
) -> BaseWeights:
    source = _Stored(stored, about["packed"], device)
    embedding = source.tensor("embedding")
    return BaseWeights(
        embedding=embedding,
        layers=tuple(_restore_layer(source, index) for index in range(about["num_layers"])),
        norm=source.tensor("norm"),
        head=DenseWeight(embedding) if about["tied"] else source.weight("head"),
        digest=about["digest"],
    )


def _restore_layer(source: "_Stored", index: int) -> LayerWeights:
    values: dict[str, Any] = {}
    for field in fields(LayerWeights):
        name = f"layers.{index}.{field.name}"
        if field.name in ("qkv", "o", "gate_up", "down"):
            values[field.name] = source.weight(name)
        else:
            values[field.name] = source.tensor(name) if source.has(name) else None
    return LayerWeights(**values)


class _Stored:
    """The tensors of a prepared file by the names of the weights they form."""

    def __init__(
        self, tensors: Mapping[str, Tensor], packed: Mapping[str, Any], device: torch.device
    ) -> None:
        self._tensors = tensors
        self._packed = packed
        self._device = device

    def has(self, name: str) -> bool:
        return name in self._tensors

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name].to(self._device)

    def weight(self, name: str) -> Weight:
        about = self._packed.get(name)
        if about is None:
            return DenseWeight(self.tensor(name))
        return Nf4Weight(
            layout=about["layout"],
            tensors={part: self.tensor(f"{name}.{part}") for part in about["parts"]},
            out_features=about["out_features"],
            in_features=about["in_features"],
            dtype=DTYPES[about["dtype"]],
        )
