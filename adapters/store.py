"""Adapter bytes by content: one folder per digest, written once, never changed."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .error import AdapterRejected
from .folder import CONFIG_NAME, WEIGHTS_NAME, AdapterFolder


class AdapterStore:
    """The folder ``<data_dir>/adapters/<first two digits>/<digest>``."""

    def __init__(self, data_dir: Path) -> None:
        self._root = data_dir / "adapters"

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A private folder on the store's file system, to check content in before it is ``put``.

        Whatever is still in it afterwards is deleted.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".incoming-", dir=self._root))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def put(self, digest: str, staged: Path) -> None:
        """Move ``staged`` in, durably and all or nothing; a digest already there is left alone.

        The files themselves move: what is kept is, byte for byte, what was checked.
        """
        target = self._path(digest)
        if target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        for path in (staged / CONFIG_NAME, staged / WEIGHTS_NAME, staged):
            _sync(path)
        try:
            os.rename(staged, target)
        except OSError:
            # Another writer of the same content is as good as we are.
            if not target.exists():
                raise
        for path in (target.parent, self._root):
            _sync(path)

    def open(self, digest: str) -> AdapterFolder:
        """The stored folder; raises ``AdapterRejected`` for an unknown digest."""
        target = self._path(digest)
        if not target.is_dir():
            raise AdapterRejected("unknown_version", f"version {digest[:12]} is not in the store")
        return AdapterFolder(target)

    def _path(self, digest: str) -> Path:
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise AdapterRejected("unknown_version", "a version digest is 64 hexadecimal digits")
        return self._root / digest[:2] / digest


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
