"""An adapter folder on disk: its two files, read without torch and checked value by value.

Every read is bounded and no file is mapped, so a file of any size needs the same few megabytes.
"""

import errno
import hashlib
import io
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from .error import AdapterRejected

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"
TEMPLATE_NAME = "chat_template.jinja"
CHUNK_BYTES = 1 << 20
_MAX_CONFIG_BYTES = 1 << 20
_MAX_CONFIG_DEPTH = 8
_MAX_TEMPLATE_BYTES = 64 << 10
_MAX_HEADER_BYTES = 4 << 20
_MAX_NAME_CHARS = 512
_MAX_DIMENSIONS = 8
# 18 digits stay below 2**63, where other readers of the format overflow.
_MAX_DIGITS = 18
# Bytes of an element, and the exponent bits that are all ones in NaN and infinity.
_FLOATS: Mapping[str, tuple[int, int]] = {
    "F32": (4, 0x7F800000),
    "F16": (2, 0x7C00),
    "BF16": (2, 0x7F80),
}
# Long integers are fastest while they fit the processor's cache.
_SCAN_BYTES = 1 << 16


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
        names = os.listdir(path)
        if CONFIG_NAME not in names:
            raise AdapterRejected("not_found", f"{path} has no {CONFIG_NAME}")
        if WEIGHTS_NAME not in names:
            raise missing_weights(str(path), has_pickle=PICKLE_NAME in names)

    @cached_property
    def config_bytes(self) -> bytes:
        with open_regular(self.path / CONFIG_NAME) as file:
            content = file.read(_MAX_CONFIG_BYTES + 1)
        if len(content) > _MAX_CONFIG_BYTES:
            raise AdapterRejected(
                "invalid_config", f"{CONFIG_NAME} is over {_MAX_CONFIG_BYTES} bytes"
            )
        return content

    @cached_property
    def config(self) -> Mapping[str, Any]:
        try:
            config = _strict_json(self.config_bytes)
            _refuse_depth(config, _MAX_CONFIG_DEPTH)
        except (ValueError, RecursionError) as error:
            raise AdapterRejected(
                "invalid_config", f"{CONFIG_NAME} is not JSON: {error}"
            ) from error
        if not isinstance(config, dict):
            raise AdapterRejected("invalid_config", f"{CONFIG_NAME} must hold one JSON object")
        return config

    @cached_property
    def template(self) -> str | None:
        """The chat template that lies beside the two files, if any: a program, to be distrusted."""
        if not os.path.lexists(self.path / TEMPLATE_NAME):
            return None
        with open_regular(self.path / TEMPLATE_NAME) as file:
            content = file.read(_MAX_TEMPLATE_BYTES + 1)
        if len(content) > _MAX_TEMPLATE_BYTES:
            raise AdapterRejected(
                "invalid_template", f"{TEMPLATE_NAME} is over {_MAX_TEMPLATE_BYTES} bytes"
            )
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise AdapterRejected(
                "invalid_template", f"{TEMPLATE_NAME} is not UTF-8: {error}"
            ) from None

    @cached_property
    def entries(self) -> tuple[TensorEntry, ...]:
        """All tensors by name, after checking that they tile the file exactly."""
        header = self._header()
        _check_metadata(header.pop("__metadata__", {}))
        entries = sorted((_entry(n, f) for n, f in header.items()), key=lambda e: e.start)
        position = 0
        for entry in entries:
            if entry.start != position:
                raise AdapterRejected("invalid_file", f"{entry.name} overlaps or leaves a hole")
            position = entry.stop
        held = self.weights_bytes - self.data_start
        if position != held:
            raise AdapterRejected(
                "invalid_file",
                f"{WEIGHTS_NAME} is truncated or padded: its header describes {position} bytes of "
                f"tensors, the file holds {held}",
            )
        return tuple(sorted(entries, key=lambda e: e.name))

    @cached_property
    def weights_bytes(self) -> int:
        """Size of the weights file in bytes."""
        with open_regular(self.path / WEIGHTS_NAME) as file:
            return os.fstat(file.fileno()).st_size

    @cached_property
    def _header_bytes(self) -> int:
        if self.weights_bytes < 8:
            raise AdapterRejected("invalid_file", f"{WEIGHTS_NAME} is truncated: under 8 bytes")
        size = int.from_bytes(b"".join(self._read(0, 8)), "little")
        if size > min(_MAX_HEADER_BYTES, self.weights_bytes - 8):
            raise AdapterRejected(
                "invalid_file",
                f"{WEIGHTS_NAME} is truncated or no safetensors: header of {size} bytes",
            )
        return size

    @property
    def data_start(self) -> int:
        """Where the tensors begin in the weights file, in bytes."""
        return 8 + self._header_bytes

    def _header(self) -> dict[str, Any]:
        raw = b"".join(self._read(8, self.data_start))
        try:
            if not raw.startswith(b"{"):
                raise ValueError("it does not start with {")
            header = _strict_json(raw, parse_int=_plain_int)
        except (ValueError, RecursionError) as error:
            raise AdapterRejected("invalid_file", f"{WEIGHTS_NAME} header: {error}") from error
        return header

    @cached_property
    def outline(self) -> bytes:
        """A sha256 of all but the tensors' values: the config, the header and the file's size.

        Folders that share it hold tensors of the same names and types in the same places.
        """
        sizes = f"{len(self.config_bytes)} {self.weights_bytes}\n"
        total = hashlib.sha256(sizes.encode() + self.config_bytes)
        for chunk in self._read(0, self.data_start):
            total.update(chunk)
        return total.digest()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {entry.name: entry.shape for entry in self.entries}

    def check_finite(self) -> None:
        """Refuse NaN and infinity, naming the tensor."""
        for entry in self.entries:
            is_finite = _finite_scan(entry.dtype)
            if not all(is_finite(chunk) for chunk in self._tensor(entry)):
                raise AdapterRejected(
                    "not_finite",
                    f"tensor {entry.name} holds NaN or infinity; did its training diverge?",
                )

    def digest(self, semantics: str) -> str:
        """sha256 over ``semantics`` and every tensor's name, dtype, shape and bytes, by name."""
        total = hashlib.sha256(semantics.encode())
        for entry in self.entries:
            total.update(f"\0{entry.name}\0{entry.dtype}\0{entry.shape}\0".encode())
            for chunk in self._tensor(entry):
                total.update(chunk)
        return total.hexdigest()

    def _tensor(self, entry: TensorEntry) -> Iterator[bytes]:
        return self._read(self.data_start + entry.start, self.data_start + entry.stop)

    def _read(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes ``[start, stop)`` of the weights file in chunks of whole elements."""
        with open_regular(self.path / WEIGHTS_NAME) as file:
            file.seek(start)
            for position in range(start, stop, CHUNK_BYTES):
                size = min(CHUNK_BYTES, stop - position)
                chunk = file.read(size)
                if len(chunk) != size:
                    raise AdapterRejected(
                        "invalid_file", f"{WEIGHTS_NAME} shrank while it was read"
                    )
                yield chunk


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file to read; never follows a link and never waits for a pipe's writer.

    Raises ``AdapterRejected``: ``not_found``, or ``unsafe_file`` for anything but a regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise AdapterRejected("not_found", f"{path} does not exist") from None
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENODEV):
            raise _not_regular(path) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_regular(path)
    return os.fdopen(descriptor, "rb")


def missing_weights(where: str, *, has_pickle: bool) -> AdapterRejected:
    """The reason to refuse what has no safetensors file."""
    if has_pickle:
        return AdapterRejected(
            "unsafe_format",
            f"{PICKLE_NAME} is a pickle and is never opened; save the adapter with "
            "save_pretrained(..., safe_serialization=True)",
        )
    return AdapterRejected("not_found", f"{where} has no {WEIGHTS_NAME}")


def _not_regular(path: Path) -> AdapterRejected:
    return AdapterRejected(
        "unsafe_file",
        f"{path.name} is a link, folder, pipe or device; it must be a regular file "
        "(cp -rL copies a folder with its links resolved)",
    )


def _strict_json(raw: bytes, **hooks: Any) -> Any:
    """JSON as the standard has it: UTF-8, each key once, no NaN or Infinity."""
    text = raw.decode("utf-8")
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, **hooks)


@cache
def _finite_scan(dtype: str) -> Callable[[bytes], bool]:
    """Whether all of up to ``CHUNK_BYTES`` of little-endian floats are finite.

    The chunk is read as one long integer. Adding the lowest exponent bit to an exponent of all ones
    carries into the sign bit, which was masked out, and never beyond: numpy does this faster, but
    importing it takes the gate's process longer than to scan 50 MB.
    """
    size, exponent = _FLOATS[dtype]
    num_words = _SCAN_BYTES // size

    def everywhere(word: int) -> int:
        return int.from_bytes(word.to_bytes(size, "little") * num_words, "little")

    mask, lowest, sign = (
        everywhere(word) for word in (exponent, exponent & -exponent, 1 << (8 * size - 1))
    )

    def is_finite(chunk: bytes) -> bool:
        return not any(
            ((int.from_bytes(chunk[start : start + _SCAN_BYTES], "little") & mask) + lowest) & sign
            for start in range(0, len(chunk), _SCAN_BYTES)
        )

    return is_finite


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def _plain_int(text: str) -> int:
    if text.startswith("-") or len(text) > _MAX_DIGITS:
        raise ValueError(f"{text[:40]} is no size or offset; they are 0 to {10**_MAX_DIGITS - 1}")
    return int(text)


def _refuse_depth(value: Any, levels: int) -> None:
    if not isinstance(value, dict | list):
        return
    if levels == 0:
        raise ValueError(f"it nests deeper than {_MAX_CONFIG_DEPTH} levels")
    for item in value.values() if isinstance(value, dict) else value:
        _refuse_depth(item, levels - 1)


def _check_metadata(metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise AdapterRejected(
            "invalid_file", f"__metadata__ of {WEIGHTS_NAME} must map strings to strings"
        )


def _entry(name: str, fields: Any) -> TensorEntry:
    if len(name) > _MAX_NAME_CHARS or not (name.isascii() and name.isprintable()):
        raise AdapterRejected(
            "invalid_file",
            f"tensor name {name[:80]!r} of {len(name)} characters; names are up to "
            f"{_MAX_NAME_CHARS} printable ASCII characters",
        )
    dtype, shape, start, stop = _fields(name, fields)
    if dtype not in _FLOATS:
        raise AdapterRejected(
            "unsupported_dtype", f"tensor {name} is {dtype}; save it as F32, F16 or BF16"
        )
    num_bytes = _FLOATS[dtype][0]
    for size in shape:
        num_bytes *= size
    if num_bytes < 1 or stop - start != num_bytes:
        raise AdapterRejected(
            "invalid_file",
            f"tensor {name} has a shape that is not its size: {dtype} {list(shape)} in "
            f"{stop - start} bytes",
        )
    return TensorEntry(name, dtype, shape, start, stop)


def _fields(name: str, fields: Any) -> tuple[str, tuple[int, ...], int, int]:
    match fields:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [start, stop]} if (
            len(fields) == 3
            and len(shape) <= _MAX_DIMENSIONS
            # Not isinstance: true and false are ints too.
            and all(type(number) is int for number in (*shape, start, stop))
        ):
            return dtype, tuple(shape), start, stop
    raise AdapterRejected(
        "invalid_file",
        f"header of tensor {name} is malformed; it needs exactly dtype, shape (at most "
        f"{_MAX_DIMENSIONS} whole numbers) and data_offsets (two whole numbers)",
    )
