"""A checkpoint as one set of named tensors, each of which must be used, in its expected shape."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from multiflora.adapters.tensor_file import DTYPES, TensorSpec

from ..errors import InvalidCheckpoint
from .shard import Shard, find_shards, read_shard
from .tensor_file import read_tensor

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
# Buffers that old exports contain and every model recomputes.
IGNORED_ENDINGS = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")


class Checkpoint:
    """Streams tensors by name and remembers which names were taken."""

    def __init__(self, shards: Mapping[str, Shard]) -> None:
        self._shards = shards
        self._taken: set[str] = set()
        self._total_bytes = sum(self._num_bytes(name) for name in shards)
        self._taken_bytes = 0

    @classmethod
    def open(cls, folder: Path) -> "Checkpoint":
        """Read the headers of all shards; raises `InvalidCheckpoint` for damage or duplicates."""
        shards: dict[str, Shard] = {}
        for shard in map(read_shard, find_shards(folder)):
            for name in shard.entries:
                if name in shards:
                    raise InvalidCheckpoint(
                        f"tensor {name} is in {shards[name].path.name} and in {shard.path.name}"
                    )
                shards[name] = shard
        return cls(shards)

    def __contains__(self, name: str) -> bool:
        return name in self._shards

    def companions(self, name: str) -> dict[str, TensorSpec]:
        """The tensors stored beside ``name``, by the names that add to it."""
        found = (other for other in self._shards if other.startswith(f"{name}."))
        return {other: self._spec(other) for other in found}

    @property
    def progress(self) -> float:
        """Share of the checkpoint's bytes that were taken, 0 to 1."""
        return self._taken_bytes / max(self._total_bytes, 1)

    def take(self, name: str) -> Tensor:
        """Read a tensor of any dtype and shape; `InvalidCheckpoint` if there is none."""
        if name not in self._shards:
            raise InvalidCheckpoint(f"the checkpoint has no tensor {name}")
        if name not in self._taken:
            self._taken.add(name)
            self._taken_bytes += self._num_bytes(name)
        return read_tensor(self._shards[name], name)

    def take_float(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Read a floating-point tensor that must have ``shape``."""
        tensor = self.take(name)
        if tuple(tensor.shape) != shape:
            raise InvalidCheckpoint(
                f"tensor {name} is {list(tensor.shape)}, config.json implies {list(shape)}"
            )
        if tensor.dtype not in FLOATS:
            raise InvalidCheckpoint(f"tensor {name} is {tensor.dtype}; expected a float dtype")
        return tensor

    def check_all_taken(self) -> None:
        """Raise `InvalidCheckpoint` naming tensors that the model has no place for."""
        surplus = [
            name
            for name in self._shards
            if name not in self._taken and not name.endswith(IGNORED_ENDINGS)
        ]
        if surplus:
            more = f" and {len(surplus) - 5} more" if len(surplus) > 5 else ""
            raise InvalidCheckpoint(
                f"the model has no place for tensor {', '.join(sorted(surplus)[:5])}{more}"
            )

    def _spec(self, name: str) -> TensorSpec:
        entry = self._shards[name].entries[name]
        return TensorSpec(DTYPES[entry.dtype], entry.shape)

    def _num_bytes(self, name: str) -> int:
        return self._shards[name].entries[name].num_bytes
