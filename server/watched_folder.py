"""A folder whose subfolders are adapters, published under their names as they come and change."""

import logging
import os
from pathlib import Path
from typing import Final, TypeAlias

from multiflora.adapters.error import AdapterRejected, RegistryError
from multiflora.adapters.folder import CONFIG_NAME, WEIGHTS_NAME
from multiflora.adapters.registry import Registry
from multiflora.engine.errors import EngineError

from .publishing import Publisher, Terms
from .start_adapters import is_decided_elsewhere

logger = logging.getLogger(__name__)

FOLDER_SOURCE: Final = "folder:"
Signature: TypeAlias = tuple[tuple[int, int, int], ...]


class WatchedFolder:
    """``scan`` it from time to time, from one thread at a time.

    Unchanged files cost a stat. Changed ones are published once they are the same in two scans: a
    copy may be under way. A subfolder that goes away leaves its name, which the API can delete.
    """

    def __init__(self, root: Path, registry: Registry, publisher: Publisher) -> None:
        self._root = root
        self._registry = registry
        self._publisher = publisher
        self._seen: dict[str, Signature] = {}
        self._done: dict[str, Signature] = {}
        self._is_first = True

    def scan(self) -> None:
        """Publish what is new. Never raises for a bad subfolder: it is logged, once."""
        try:
            folders = sorted(path for path in self._root.iterdir() if _is_candidate(path))
        except OSError as error:
            logger.error("the adapters directory %s cannot be read: %s", self._root, error.strerror)
            return
        for folder in folders:
            self._look_at(folder)
        self._is_first = False

    def _look_at(self, folder: Path) -> None:
        name = folder.name
        signature = _signature(folder)
        if signature is None or self._done.get(name) == signature:
            return
        is_settled = self._seen.get(name) == signature
        self._seen[name] = signature
        if not is_settled and not self._is_first:
            return
        try:
            self._publish(folder)
        except (AdapterRejected, RegistryError, EngineError, OSError) as error:
            # At the first scan nothing is known to be settled; the second one says what is wrong.
            if is_settled:
                self._done[name] = signature
                logger.error("%s is not served: %s", folder, error)
            return
        self._done[name] = signature

    def _publish(self, folder: Path) -> None:
        self._registry.check_name(folder.name)
        version = self._publisher.take_in(folder, source=f"{FOLDER_SOURCE}{folder}")
        # A change while the server runs was made on purpose; at a start the API may have the last
        # word, as it has over flags.
        if self._is_first and is_decided_elsewhere(self._registry, folder.name, version.digest):
            self._publisher.give_up(version)
            return
        entry = self._publisher.point(folder.name, version, terms=Terms())
        logger.info("%s is served as %r, version %s", folder, folder.name, entry.digest[:12])


def _is_candidate(folder: Path) -> bool:
    return not folder.name.startswith(".") and folder.is_dir()


def _signature(folder: Path) -> Signature | None:
    """Changes with every write to the files; None while one of them is missing."""
    try:
        found = [os.stat(folder / name) for name in (CONFIG_NAME, WEIGHTS_NAME)]
    except OSError:
        return None
    # The time of change, unlike that of modification, cannot be set by a copying program.
    return tuple((stat.st_ctime_ns, stat.st_size, stat.st_ino) for stat in found)
