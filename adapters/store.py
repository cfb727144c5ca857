"""Adapter bytes by content: one folder per digest, written once, never changed."""

import os
import shutil
import tempfile
import threading
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from . import durable
from .error import AdapterRejected
from .fault import reach
from .folder import CONFIG_NAME, WEIGHTS_NAME, AdapterFolder
from .staging import StagingArea
from .version import is_digest

_OUTGOING: Final = ".outgoing-"


class AdapterStore:
    """The folder ``<data_dir>/adapters/<first two digits>/<digest>``.

    A digest's folder is whole or absent at every moment. Any process may ``open``; one object per
    data directory may ``put`` and ``remove``, from any thread.
    """

    def __init__(self, data_dir: Path) -> None:
        self._root = data_dir / "adapters"
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()
        self._staging = StagingArea(self._root)

    def __contains__(self, digest: str) -> bool:
        return is_digest(digest) and self._path(digest).is_dir()

    def staging(self) -> AbstractContextManager[Path]:
        """A private folder on the store's file system, to check content in before it is ``put``.

        Whatever is still in it afterwards is deleted.
        """
        return self._staging.folder()

    def put(self, digest: str, staged: Path) -> None:
        """Move ``staged`` in, durably and all or nothing; a digest already there is left alone.

        The files themselves move: what is kept is, byte for byte, what was checked. The digest is
        held: nothing removes it before one ``release`` per ``put``. Raises ``OSError``.
        """
        target = self._path(digest)
        durable.make_folder(target.parent)
        self._hold(digest)
        try:
            if not target.is_dir():
                self._move(staged, target)
            # Also for a folder that was there: its writer may have died before this.
            for parent in (target.parent, self._root):
                durable.sync(parent)
        except BaseException:
            self.release(digest)
            raise
        reach("put.6")

    def put_copy(self, digest: str, folder: AdapterFolder) -> None:
        """``put`` a copy of a folder that this program made itself and need not check."""
        with self.staging() as staged:
            reach("put.1")
            (staged / CONFIG_NAME).write_bytes(folder.config_bytes)
            reach("put.2")
            shutil.copyfile(folder.path / WEIGHTS_NAME, staged / WEIGHTS_NAME)
            reach("put.3")
            self.put(digest, staged)

    def release(self, digest: str) -> None:
        """End the hold of one ``put``: the version was published, or will not be."""
        with self._lock:
            if self._held[digest] > 1:
                self._held[digest] -= 1
            else:
                del self._held[digest]

    def remove(self, digest: str) -> bool:
        """Take the version's bytes out of sight, durably; False while it is held or absent.

        ``sweep`` frees the space.
        """
        target = self._path(digest)
        with self._lock:
            if digest in self._held or not target.is_dir():
                return False
            # Deleting in place would leave half a version under its digest after a crash.
            os.rename(target, Path(tempfile.mkdtemp(prefix=_OUTGOING, dir=self._root)) / digest)
            durable.sync(target.parent)
        return True

    def sweep(self) -> None:
        """Delete what was removed, and what a crash left of a ``put``."""
        for folder in self._leftovers():
            shutil.rmtree(folder, ignore_errors=True)
            reach("collect.6")

    def digests(self) -> tuple[str, ...]:
        """All whole versions in the store."""
        found = (path.name for path in self._root.glob("[0-9a-f][0-9a-f]/*"))
        return tuple(sorted(digest for digest in found if is_digest(digest)))

    def open(self, digest: str) -> AdapterFolder:
        """The stored folder; raises ``AdapterRejected`` for an unknown digest."""
        target = self._path(digest)
        if not target.is_dir():
            raise AdapterRejected("unknown_version", f"version {digest[:12]} is not in the store")
        return AdapterFolder(target)

    def _hold(self, digest: str) -> None:
        with self._lock:
            self._held[digest] += 1

    def _move(self, staged: Path, target: Path) -> None:
        for path in (*sorted(staged.iterdir()), staged):
            durable.sync(path)
        reach("put.4")
        try:
            os.rename(staged, target)
        except OSError:
            # Another writer of the same content is as good as we are.
            if not target.is_dir():
                raise
        reach("put.5")

    def _leftovers(self) -> list[Path]:
        return [*self._staging.leftovers(), *self._root.glob(f"{_OUTGOING}*")]

    def _path(self, digest: str) -> Path:
        if not is_digest(digest):
            raise AdapterRejected("unknown_version", "a version digest is 64 hexadecimal digits")
        return self._root / digest[:2] / digest
