"""Looks an adapter's name up beside a running server: the registry is read, never held."""

import sqlite3
from contextlib import closing
from pathlib import Path

from .error import RegistryUnavailable, UnknownName
from .registry import DATABASE_NAME
from .registry_tables import RegistryTables
from .store import AdapterStore


def published_folder(data_dir: Path, name: str) -> Path:
    """The stored PEFT folder of the version that ``name`` points at.

    Raises ``UnknownName``, ``RegistryUnavailable``, or ``AdapterRejected`` for missing bytes.
    """
    path = data_dir / DATABASE_NAME
    if not path.is_file():
        raise UnknownName(name)
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            entry = RegistryTables(connection).entry(name)
    except sqlite3.Error as error:
        raise RegistryUnavailable(f"{path} could not be read ({error})") from error
    if entry is None:
        raise UnknownName(name)
    return AdapterStore(data_dir).open(entry.digest).path
