"""Safetensors files written tensor by tensor, so that no second copy of the file is in memory."""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Wide vector loads and cache lines; also a multiple of every item size.
ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a tensor will be, before there is one."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file tensor by tensor and sync it; CPU copies are made one at a time."""
    specs = {name: TensorSpec(t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    stream_tensors(path, specs, tensors.__getitem__, metadata)


def stream_tensors(
    path: Path,
    specs: Mapping[str, TensorSpec],
    read: Callable[[str], Tensor],
    metadata: Mapping[str, str],
) -> None:
    """As ``write_tensors``, asking ``read`` for one tensor after the other.

    Those that fill whole 64-byte lines come first, by name, so that each of them starts on one;
    then the others by the size of their items, which the safetensors package wants aligned.
    """
    names = sorted(specs, key=lambda name: _place(name, specs[name]))
    header = _header(names, specs, metadata)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for name in names:
            tensor = read(name)
            assert TensorSpec(tensor.dtype, tuple(tensor.shape)) == specs[name], name
            file.write(byte_view(tensor))
        file.flush()
        os.fsync(file.fileno())


def byte_view(tensor: Tensor) -> memoryview:
    """A tensor's values as bytes, without a copy if it is contiguous on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data)


def _place(name: str, spec: TensorSpec) -> tuple[bool, int, str]:
    is_odd = spec.num_bytes % ALIGNMENT != 0
    return is_odd, -spec.dtype.itemsize if is_odd else 0, name


def _header(
    names: list[str], specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]
) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name in names:
        spec = specs[name]
        entries[name] = {
            "dtype": DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.num_bytes],
        }
        offset += spec.num_bytes
    header = json.dumps(entries, separators=(",", ":")).encode()
    padding = -(8 + len(header)) % ALIGNMENT
    return header + b" " * padding
