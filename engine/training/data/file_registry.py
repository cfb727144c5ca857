"""Uploaded files: bytes in ``<data_dir>/files/<id>``, everything else in the one database.

Bytes are synced and in their place before a row names them, and a row goes before its bytes, so a
crash leaves bytes without a row, which ``sweep`` removes, and never a row without its bytes.
"""

import os
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, TypeAlias

from multiflora.adapters import durable
from multiflora.adapters.database import Database
from multiflora.adapters.error import RegistryError
from multiflora.adapters.staging import StagingArea

Status: TypeAlias = Literal["uploaded", "processed", "error"]
Order: TypeAlias = Literal["asc", "desc"]
# Why a file cannot be deleted now, such as the job that needs it; None if it can.
Guard: TypeAlias = Callable[[str], str | None]

_COLUMNS: Final = (
    "id, filename, purpose, num_bytes, created, expires, status, details, tenant, is_internal"
)
_PREFIX: Final = "file-"


class UnknownFile(RegistryError, KeyError):
    """No file has this id, or it was deleted or has expired."""

    code = "file_not_found"

    def __init__(self, file_id: str) -> None:
        super().__init__(f"no file has the id {file_id[:100]!r}")


class FileInUse(RegistryError):
    """A job needs the file."""

    code = "file_in_use"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What is known of a file; times are Unix times. ``details`` say what an error is.

    ``is_internal`` files were made by the server for itself, and are not listed.
    """

    id: str
    filename: str
    purpose: str
    num_bytes: int
    created: int
    expires: int | None
    status: Status
    details: str | None
    tenant: str = ""
    is_internal: bool = False


class FileRegistry:
    """Keeps files for as long as nobody deletes them. Safe to call from any thread."""

    def __init__(
        self, database: Database, data_dir: Path, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._root = data_dir / "files"
        self._staging = StagingArea(self._root)
        self._clock = clock
        self._guards: list[Guard] = []

    def guard(self, reason: Guard) -> None:
        """Ask ``reason`` before any file is deleted; it must not call this registry."""
        self._guards.append(reason)

    def staging(self) -> AbstractContextManager[Path]:
        """A private folder for bytes that are to be added."""
        return self._staging.folder()

    def add(
        self,
        staged: Path,
        *,
        filename: str,
        purpose: str,
        expires_after: int | None = None,
        status: Status = "uploaded",
        is_internal: bool = False,
        tenant: str = "",
    ) -> StoredFile:
        """Move ``staged`` in under a new id, durably. Raises ``OSError``."""
        now = int(self._clock())
        file = StoredFile(
            id=_PREFIX + secrets.token_hex(12),
            filename=filename,
            purpose=purpose,
            num_bytes=staged.stat().st_size,
            created=now,
            expires=None if expires_after is None else now + expires_after,
            status=status,
            details=None,
            is_internal=is_internal,
            tenant=tenant,
        )
        durable.make_folder(self._root)
        durable.sync(staged)
        # Under the lock, so that `sweep` does not see the bytes before the row.
        with self._database.lock:
            os.rename(staged, self._path(file.id))
            durable.sync(self._root)
            with self._database.transaction() as connection:
                connection.execute(
                    f"INSERT INTO file ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    _row(file),
                )
        return file

    def get(self, file_id: str, *, view: str | None = None) -> StoredFile:
        """Raises ``UnknownFile``; a tenant's ``view`` holds its own files and the shared ones.

        None holds all, and the server's own.
        """
        found = self._select("id = ?", file_id)
        is_hidden = view is not None and bool(found) and not _is_seen(found[0], view)
        if not found or is_hidden:
            raise UnknownFile(file_id)
        return found[0]

    def page(
        self,
        *,
        purposes: Collection[str] | None = None,
        after: str | None = None,
        limit: int = 10_000,
        order: Order = "desc",
        view: str | None = None,
    ) -> tuple[list[StoredFile], bool]:
        """Up to ``limit`` files in the order in which they were added, and whether more follow.

        ``purposes`` None are all.

        Raises ``UnknownFile`` if there is no file ``after``.
        """
        conditions, values = ["NOT is_internal"], list[Any]()
        if purposes is not None:
            conditions.append(f"purpose IN ({', '.join('?' * len(purposes))})")
            values += purposes
        if view is not None:
            conditions.append("tenant IN ('', ?)")
            values.append(view)
        if after is not None:
            self.get(after, view=view)
            conditions.append(
                f"number {'>' if order == 'asc' else '<'} (SELECT number FROM file WHERE id = ?)"
            )
            values.append(after)
        direction = "ASC" if order == "asc" else "DESC"
        found = self._select(
            " AND ".join(conditions), *values, tail=f"ORDER BY number {direction} LIMIT {limit + 1}"
        )
        return found[:limit], len(found) > limit

    def open(self, file_id: str) -> BinaryIO:
        """The bytes, which can be read to the end whatever happens to the file meanwhile.

        Raises ``UnknownFile``.
        """
        self.get(file_id)
        try:
            return open(self._path(file_id), "rb")
        except FileNotFoundError:
            raise UnknownFile(file_id) from None

    def path(self, file_id: str) -> Path:
        """Where the bytes are, for a job whose guard keeps them there. Raises ``UnknownFile``."""
        return self._path(self.get(file_id).id)

    def settle(self, file_id: str, status: Status, details: str | None = None) -> None:
        """Record what the check found; nothing happens if the file was deleted meanwhile."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE file SET status = ?, details = ? WHERE id = ?", (status, details, file_id)
            )

    def delete(self, file_id: str) -> None:
        """Forget the file and free its space; who reads it can go on.

        Raises ``UnknownFile``, and ``FileInUse`` with the reason that a guard has.
        """
        with self._database.lock:
            self.get(file_id)
            if (reason := self._reason(file_id)) is not None:
                raise FileInUse(f"{file_id} cannot be deleted now: {reason}")
            self._remove(file_id)

    def internal(self) -> list[StoredFile]:
        """Files that the server made for itself, the oldest first."""
        return self._select("is_internal", tail="ORDER BY number")

    def unchecked(self) -> list[str]:
        """Ids of files whose check has not ended, the oldest first."""
        return [file.id for file in self._select("status = 'uploaded'", tail="ORDER BY number")]

    def sweep(self) -> None:
        """Remove what has expired, and what a crash left; rows without bytes get an error.

        For the start, and for now and then.
        """
        with self._database.lock:
            for file in self._select("expires <= ?", int(self._clock()), with_expired=True):
                if self._reason(file.id) is None:
                    self._remove(file.id)
            known = {file.id: file for file in self._select("1", with_expired=True)}
            present = {path.name for path in self._root.glob(f"{_PREFIX}*")}
            for name in present - known.keys():
                self._path(name).unlink(missing_ok=True)
            for file_id in known.keys() - present:
                self.settle(file_id, "error", "the bytes were lost; upload the file again")
        for folder in self._staging.leftovers():
            shutil.rmtree(folder, ignore_errors=True)

    def _remove(self, file_id: str) -> None:
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM file WHERE id = ?", (file_id,))
        self._path(file_id).unlink(missing_ok=True)

    def _reason(self, file_id: str) -> str | None:
        found = (reason(file_id) for reason in self._guards)
        return next((reason for reason in found if reason is not None), None)

    def _select(
        self, condition: str, *values: Any, tail: str = "", with_expired: bool = False
    ) -> list[StoredFile]:
        if not with_expired:
            condition = f"({condition}) AND (expires IS NULL OR expires > ?)"
            values = (*values, int(self._clock()))
        with self._database.reading() as connection:
            rows: Iterator[Any] = connection.execute(
                f"SELECT {_COLUMNS} FROM file WHERE {condition} {tail}", values
            )
            return [StoredFile(*row, is_internal=bool(internal)) for *row, internal in rows]

    def _path(self, file_id: str) -> Path:
        return self._root / file_id


def _is_seen(file: StoredFile, view: str) -> bool:
    return file.tenant in ("", view) and not file.is_internal


def _row(file: StoredFile) -> tuple[Any, ...]:
    return tuple(getattr(file, name) for name in _COLUMNS.split(", "))
