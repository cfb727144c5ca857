"""An adapter folder on disk: its two files, read without torch and checked value by value."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .error import AdapterRejected

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_MAX_CONFIG_BYTES = 1 << 20
_MAX_HEADER_BYTES = 4 << 20
# Element size, and the exponent bits that are all ones in NaN and infinity.
_FLOATS: Mapping[str, tuple[str, int]] = {
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a safetensors header; ``start`` and ``stop`` are offsets into the data part."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class AdapterFolder:
    """A PEFT folder. Raises ``AdapterRejected`` for whatever is missing, truncated or malformed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_dir():
            raise AdapterRejected("not_found", f"adapter folder {path} does not exist")
        if not (path / CONFIG_NAME).is_file():
            raise AdapterRejected("not_found", f"{path} has no {CONFIG_NAME}")
        if not (path / WEIGHTS_NAME).is_file():
            self._refuse_missing_weights()

    def _refuse_missing_weights(self) -> None:
        if (self.path / "adapter_model.bin").exists():
            raise AdapterRejected(
                "unsafe_format",
                "adapter_model.bin is a pickle and is never opened; save the adapter with "
                "save_pretrained(..., safe_serialization=True)",
            )
        raise AdapterRejected("not_found", f"{self.path} has no {WEIGHTS_NAME}")

    @cached_property
    def config_bytes(self) -> bytes:
        content = (self.path / CONFIG_NAME).read_bytes()
        if len(content) > _MAX_CONFIG_BYTES:
            raise AdapterRejected(
                "invalid_config", f"{CONFIG_NAME} is over {_MAX_CONFIG_BYTES} bytes"
            )
        return content

    @cached_property
    def config(self) -> Mapping[str, Any]:
        try:
            config = json.loads(self.config_bytes)
        except (ValueError, RecursionError) as error:
            raise AdapterRejected(
                "invalid_config", f"{CONFIG_NAME} is not JSON: {error}"
            ) from error
        if not isinstance(config, dict):
            raise AdapterRejected("invalid_config", f"{CONFIG_NAME} must hold one JSON object")
        return config

    @cached_property
    def entries(self) -> tuple[TensorEntry, ...]:
        """All tensors by name, after checking that they tile the file exactly."""
        header = self._header()
        header.pop("__metadata__", None)
        entries = sorted((_entry(n, f) for n, f in header.items()), key=lambda e: e.start)
        position = 0
        for entry in entries:
            if entry.start != position:
                raise AdapterRejected("invalid_file", f"{entry.name} overlaps or leaves a hole")
            position = entry.stop
        if position != len(self._data):
            raise AdapterRejected(
                "invalid_file",
                f"{WEIGHTS_NAME} is truncated or padded: its header describes {position} bytes of "
                f"tensors, the file holds {len(self._data)}",
            )
        return tuple(sorted(entries, key=lambda e: e.name))

    @cached_property
    def _bytes(self) -> np.ndarray:
        if (self.path / WEIGHTS_NAME).stat().st_size < 8:
            raise AdapterRejected("invalid_file", f"{WEIGHTS_NAME} is truncated: under 8 bytes")
        return np.memmap(self.path / WEIGHTS_NAME, dtype=np.uint8, mode="r")

    @cached_property
    def _header_bytes(self) -> int:
        size = int(self._bytes[:8].view("<u8")[0])
        if size > min(_MAX_HEADER_BYTES, len(self._bytes) - 8):
            raise AdapterRejected(
                "invalid_file",
                f"{WEIGHTS_NAME} is truncated or no safetensors: header of {size} bytes",
            )
        return size

    @property
    def _data(self) -> np.ndarray:
        return self._bytes[8 + self._header_bytes :]

    def _header(self) -> dict[str, Any]:
        raw = self._bytes[8 : 8 + self._header_bytes].tobytes()
        try:
            header = json.loads(raw, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise AdapterRejected("invalid_file", f"{WEIGHTS_NAME} header: {error}") from error
        if not isinstance(header, dict):
            raise AdapterRejected("invalid_file", f"{WEIGHTS_NAME} header is not an object")
        return header

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {entry.name: entry.shape for entry in self.entries}

    def check_finite(self) -> None:
        """Refuse NaN and infinity, naming the tensor."""
        for entry in self.entries:
            kind, exponent = _FLOATS[entry.dtype]
            words = self._data[entry.start : entry.stop].copy().view(kind)
            if bool(((words & exponent) == exponent).any()):
                raise AdapterRejected("not_finite", f"tensor {entry.name} holds NaN or infinity")

    def digest(self, semantics: str) -> str:
        """sha256 over ``semantics`` and every tensor's name, dtype, shape and bytes, by name."""
        total = hashlib.sha256(semantics.encode())
        for entry in self.entries:
            total.update(f"\0{entry.name}\0{entry.dtype}\0{entry.shape}\0".encode())
            total.update(self._data[entry.start : entry.stop].data)
        return total.hexdigest()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _entry(name: str, fields: Any) -> TensorEntry:
    try:
        dtype, shape = str(fields["dtype"]), tuple(int(size) for size in fields["shape"])
        start, stop = (int(offset) for offset in fields["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterRejected("invalid_file", f"header of tensor {name} is malformed") from error
    if dtype not in _FLOATS:
        raise AdapterRejected(
            "unsupported_dtype", f"tensor {name} is {dtype}; save it as F32, F16 or BF16"
        )
    item_bytes = np.dtype(_FLOATS[dtype][0]).itemsize
    elements = 1
    for size in shape:
        elements *= size
    if any(size < 1 for size in shape) or stop - start != elements * item_bytes:
        raise AdapterRejected("invalid_file", f"tensor {name} has a shape that is not its size")
    return TensorEntry(name, dtype, shape, start, stop)
