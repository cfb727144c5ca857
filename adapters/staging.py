"""Private folders for what is on its way in, on the file system where it is to stay."""

import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from . import durable

_INCOMING: Final = ".incoming-"


class StagingArea:
    """Makes folders in ``root``, and knows those that a crash left there."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._in_use: set[Path] = set()

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """An empty folder; whatever is still in it afterwards is deleted."""
        durable.make_folder(self._root)
        with self._lock:
            folder = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=self._root))
            self._in_use.add(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            self._in_use.discard(folder)

    def leftovers(self) -> list[Path]:
        """Folders that nobody uses any more."""
        with self._lock:
            return [path for path in self._root.glob(f"{_INCOMING}*") if path not in self._in_use]
