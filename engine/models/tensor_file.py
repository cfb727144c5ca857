"""Tensors in safetensors files: read one, or map all; holds no more than it is asked for.

The safetensors package reads through a mapping whose touched pages stay resident until the file is
closed; plain reads keep the peak of a load at one tensor, whatever the order of the shards.
"""

import torch
from torch import Tensor

from multiflora.adapters.tensor_file import DTYPES

from ..errors import InvalidCheckpoint
from .shard import Shard, TensorEntry


def read_tensor(shard: Shard, name: str) -> Tensor:
    """Read one tensor into memory of its own."""
    entry = shard.entries[name]
    buffer = torch.empty(entry.num_bytes, dtype=torch.uint8)
    with shard.path.open("rb", buffering=0) as file:
        file.seek(entry.start)
        view = memoryview(buffer.numpy().data)
        while view:
            count = file.readinto(view)
            if not count:
                raise InvalidCheckpoint(f"{shard.path} is truncated inside tensor {name}")
            view = view[count:]
    return _shape(buffer, entry)


def map_tensors(shard: Shard) -> dict[str, Tensor]:
    """Map the file privately and view every tensor: nothing is read until it is used."""
    size = shard.path.stat().st_size
    data = torch.from_file(str(shard.path), shared=False, size=size, dtype=torch.uint8)
    return {
        name: _shape(data[entry.start : entry.start + entry.num_bytes], entry)
        for name, entry in shard.entries.items()
    }


def _shape(raw: Tensor, entry: TensorEntry) -> Tensor:
    dtype = DTYPES[entry.dtype]
    if not entry.num_bytes:
        return torch.empty(entry.shape, dtype=dtype)
    if raw.storage_offset() % dtype.itemsize:
        raw = raw.clone()
    return raw.view(dtype).reshape(entry.shape)
