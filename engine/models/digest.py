"""sha256 of tensors and of files; a file is read again only when it changed."""

import hashlib
import json
import logging
import os
from pathlib import Path

from torch import Tensor

from multiflora.adapters.tensor_file import byte_view

logger = logging.getLogger(__name__)

PIECE_BYTES = 1 << 24


class TensorDigest:
    """A running sha256 over named tensors."""

    def __init__(self, preamble: object) -> None:
        self._hash = hashlib.sha256(json.dumps(preamble, sort_keys=True).encode())

    def add(self, name: str, tensor: Tensor) -> None:
        """Append name, dtype, shape and bytes."""
        header = f"{name}:{tensor.dtype}:{list(tensor.shape)}:"
        self._hash.update(header.encode())
        self._hash.update(byte_view(tensor))

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


class FileDigests:
    """sha256 of files, remembered in a JSON file by path, size, mtime and inode.

    The memory is an optimization: if it is lost, damaged or overwritten by another process, files
    are hashed again.
    """

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._known = _read_memory(memory)

    def digest(self, path: Path) -> str:
        """The sha256 of the file's content in hex."""
        resolved = path.resolve()
        stat = resolved.stat()
        identity = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        known = self._known.get(str(resolved))
        if isinstance(known, dict) and known.get("identity") == identity:
            return str(known["sha256"])
        found = _hash_file(resolved)
        self._known[str(resolved)] = {"identity": identity, "sha256": found}
        return found

    def save(self) -> None:
        """Remember for the next start, without files that are gone."""
        kept = {path: known for path, known in self._known.items() if Path(path).exists()}
        try:
            replace_text(self._memory, json.dumps(kept, indent=1))
        except OSError as error:
            logger.warning("%s could not be written: %s", self._memory, error)


def replace_text(path: Path, text: str) -> None:
    """Replace a file's content atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def _read_memory(path: Path) -> dict[str, object]:
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _hash_file(path: Path) -> str:
    found = hashlib.sha256()
    buffer = bytearray(PIECE_BYTES)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            found.update(memoryview(buffer)[:count])
    return found.hexdigest()
