"""What is in a safetensors file, from its header alone. Imports no torch.

Format: 8 bytes little-endian header length, a JSON header, then the tensors' bytes; see
https://github.com/huggingface/safetensors.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidCheckpoint

ITEM_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
MAX_HEADER_BYTES = 100_000_000
INDEX_NAME = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor lies: ``dtype`` in safetensors' spelling, ``start`` from the file's begin."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file whose header agrees with its size."""

    path: Path
    entries: dict[str, TensorEntry]
    metadata: dict[str, str]


def read_shard(path: Path) -> Shard:
    """Read and check a header; `InvalidCheckpoint` names the file, and the tensor if any."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise InvalidCheckpoint(f"{path} is truncated or not a safetensors file")
            header = json.loads(file.read(length))
    except OSError as error:
        raise InvalidCheckpoint(f"{path} cannot be read: {error}") from error
    except ValueError as error:
        raise InvalidCheckpoint(f"{path} has a damaged safetensors header: {error}") from error
    if not isinstance(header, dict):
        raise InvalidCheckpoint(f"{path} has a damaged safetensors header: not an object")
    metadata = header.pop("__metadata__", None) or {}
    entries = {name: _read_entry(path, name, raw, 8 + length) for name, raw in header.items()}
    _check_size(path, entries, size)
    return Shard(path, entries, metadata)


def find_shards(folder: Path) -> list[Path]:
    """List the safetensors files of a checkpoint: by its index, or the single or numbered files."""
    if (folder / INDEX_NAME).is_file():
        return _indexed_shards(folder)
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    # Some repositories carry a second, differently named copy of all weights.
    paths = [p for p in folder.glob("*.safetensors") if not p.name.startswith("consolidated")]
    if not paths:
        raise InvalidCheckpoint(f"{folder} has no *.safetensors")
    return sorted(paths)


def _indexed_shards(folder: Path) -> list[Path]:
    index = folder / INDEX_NAME
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InvalidCheckpoint(f"{index} is damaged: {error}") from error
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise InvalidCheckpoint(f"{index.name} lists {name}, which is not in {folder}")
    return [folder / name for name in names]


def _read_entry(path: Path, name: str, raw: Any, data_start: int) -> TensorEntry:
    try:
        dtype, shape = raw["dtype"], tuple(raw["shape"])
        first, last = raw["data_offsets"]
        expected = math.prod(shape) * ITEM_SIZES[dtype]
        sound = first >= 0 and last - first == expected and all(size >= 0 for size in shape)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidCheckpoint(f"{path}: tensor {name} has a damaged entry: {raw}") from error
    if not sound:
        raise InvalidCheckpoint(f"{path}: tensor {name} has a damaged entry: {raw}")
    return TensorEntry(dtype, shape, data_start + first, expected)


def _check_size(path: Path, entries: dict[str, TensorEntry], size: int) -> None:
    for name, entry in entries.items():
        if entry.start + entry.num_bytes > size:
            raise InvalidCheckpoint(
                f"{path} is truncated: tensor {name} ends at byte "
                f"{entry.start + entry.num_bytes} of {size}"
            )
