"""One SQLite file, one process, one writing connection: a change is durable once it returns."""

import contextlib
import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

from . import durable
from .error import RegistryUnavailable

_BUSY_SECONDS: Final = 5.0


class Database:
    """A connection behind ``lock``, which also orders a change and what is derived from it.

    ``migrations`` are SQL scripts; the file's ``user_version`` counts those that were applied.
    """

    def __init__(self, path: Path | None, migrations: Sequence[str]) -> None:
        self.lock = threading.RLock()
        self._path = path
        with contextlib.ExitStack() as opened:
            if path is not None:
                opened.callback(os.close, _hold(path))
            try:
                self._connection = sqlite3.connect(
                    path or ":memory:",
                    timeout=_BUSY_SECONDS,
                    isolation_level=None,
                    check_same_thread=False,
                )
                opened.callback(self._connection.close)
                self._configure()
                self._migrate(migrations)
            except sqlite3.Error as error:
                raise self._unavailable(error) from error
            self._opened = opened.pop_all()

    @classmethod
    def open(cls, path: Path, migrations: Sequence[str]) -> Self:
        """Open or make the file, for this process alone. Raises ``RegistryUnavailable``."""
        try:
            durable.make_folder(path.parent)
            return cls(path, migrations)
        except OSError as error:
            raise RegistryUnavailable(f"{path} cannot be opened: {error.strerror}") from error

    @classmethod
    def in_memory(cls, migrations: Sequence[str]) -> Self:
        return cls(None, migrations)

    def close(self) -> None:
        """Let another process have the file. Closing twice is harmless."""
        with self.lock:
            self._opened.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing: commits, durably, when the block ends, and undoes all if it raises.

        Raises ``RegistryUnavailable`` if the disk is full or fails.
        """
        with self.lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException as error:
                if self._connection.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        self._connection.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError):
                    raise self._unavailable(error) from error
                raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection between changes."""
        with self.lock:
            yield self._connection

    def scrub(self, *, is_patient: bool = True, keep_copies: bool = False) -> None:
        """Leave nothing of what was deleted in any file: neither in the log nor in older copies.

        If ``is_patient``, readers get some seconds to end. Raises ``RegistryUnavailable`` if
        another program reads the file, or the disk fails.
        """
        with self.lock:
            try:
                self._set_patience(_BUSY_SECONDS if is_patient else 0)
                (is_busy, *_) = self._connection.execute(
                    "PRAGMA wal_checkpoint(TRUNCATE)"
                ).fetchone()
                self._set_patience(_BUSY_SECONDS)
            except sqlite3.Error as error:
                raise self._unavailable(error) from error
            if is_busy:
                raise RegistryUnavailable(
                    f"{self._path} is read by another program, so that its log still has what was "
                    "deleted; it goes soon after that program is closed"
                )
            if not keep_copies:
                self._remove_copies()

    def _set_patience(self, seconds: float) -> None:
        self._connection.execute(f"PRAGMA busy_timeout = {round(1000 * seconds)}")

    def _remove_copies(self) -> None:
        if self._path is None:
            return
        copies = list(self._path.parent.glob(f"{self._path.name}.schema-*"))
        for copy in copies:
            copy.unlink()
        if copies:
            durable.sync(self._path.parent)

    def _configure(self) -> None:
        (mode,) = self._connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if self._path is not None and mode != "wal":
            raise RegistryUnavailable(
                f"{self._path} is on a file system without shared memory (journal mode {mode}); "
                "choose a local folder with --data-dir"
            )
        # NORMAL would lose the last commits when the power fails.
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA foreign_keys = ON")
        # What is deleted is overwritten: see `scrub`.
        self._connection.execute("PRAGMA secure_delete = ON")
        (verdict,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(" ".join(verdict.split()))

    def _migrate(self, migrations: Sequence[str]) -> None:
        (schema,) = self._connection.execute("PRAGMA user_version").fetchone()
        if schema > len(migrations):
            raise RegistryUnavailable(
                f"{self._path} has schema {schema}, this version knows {len(migrations)}; "
                "install a newer multiflora or choose another --data-dir"
            )
        if 0 < schema < len(migrations):
            self._back_up(schema)
        for number, script in enumerate(migrations[schema:], schema + 1):
            self._connection.executescript(
                f"BEGIN IMMEDIATE;\n{script};\nPRAGMA user_version = {number};\nCOMMIT;"
            )
        if self._path is not None:
            durable.sync(self._path.parent)

    def _back_up(self, schema: int) -> None:
        """Copy the file to ``<name>.schema-<number>`` before it is changed for good."""
        if self._path is None:
            return
        target = self._path.with_name(f"{self._path.name}.schema-{schema}")
        with contextlib.closing(sqlite3.connect(target)) as copy:
            self._connection.backup(copy)
        durable.sync(target)

    def _unavailable(self, error: sqlite3.Error) -> RegistryUnavailable:
        name = self._path or "the registry in memory"
        if isinstance(error, sqlite3.OperationalError):
            return RegistryUnavailable(
                f"{name} could not be read or written ({error}); nothing was changed. "
                "Check the free space and the health of the disk, then try again"
            )
        return RegistryUnavailable(
            f"{name} is damaged ({error}); restore it from a backup, or move it away to start "
            "with no adapters"
        )


def _hold(path: Path) -> int:
    """Take the lock file beside ``path``; the kernel drops the lock however the process ends."""
    descriptor = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 20).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise RegistryUnavailable(
            f"{path} is in use by process {holder}; stop it, or choose another --data-dir"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def first(rows: sqlite3.Cursor) -> Any:
    """The only value of the first row, or None."""
    row = rows.fetchone()
    return None if row is None else row[0]
