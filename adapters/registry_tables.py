"""The registry's statements in SQL. Knows no lock, no rule and no file."""

import json
import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any

from .canary import Canary
from .database import first
from .entry import AdapterEntry, HistoryEvent
from .version import Version

_VERSION = "digest, source, parents, metrics, num_bytes, rank, features, base, created"
_EVENT = "id, name, action, time, from_digest, to_digest, weight, evidence"


class RegistryTables:
    """Reads and statements on a connection; the caller owns the transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._run = connection.execute

    def entries(self) -> list[AdapterEntry]:
        names = [name for (name,) in self._run("SELECT name FROM name")]
        return [entry for name in names if (entry := self.entry(name))]

    def entry(self, name: str) -> AdapterEntry | None:
        row = self._run(
            "SELECT digest, created, updated, is_pinned, tenant FROM name WHERE name = ?", (name,)
        ).fetchone()
        if row is None:
            return None
        digest, created, updated, is_pinned, tenant = row
        kept = self._run("SELECT digest FROM kept WHERE name = ? ORDER BY touched DESC", (name,))
        return AdapterEntry(
            name=name,
            digest=digest,
            created=created,
            updated=updated,
            is_pinned=bool(is_pinned),
            canary=self._canary(name),
            kept=tuple(kept_digest for (kept_digest,) in kept),
            tenant=tenant,
        )

    def _canary(self, name: str) -> Canary | None:
        row = self._run("SELECT id, digest, weight FROM canary WHERE name = ?", (name,)).fetchone()
        return None if row is None else Canary(*row)

    def version(self, digest: str) -> Version | None:
        row = self._run(f"SELECT {_VERSION} FROM version WHERE digest = ?", (digest,)).fetchone()
        if row is None:
            return None
        digest, source, parents, metrics, num_bytes, rank, features, base, created = row
        return Version(
            digest=digest,
            source=source,
            parents=tuple(json.loads(parents)),
            metrics=json.loads(metrics),
            num_bytes=num_bytes,
            rank=rank,
            features=tuple(json.loads(features)),
            base=base,
            created=created,
        )

    def digests(self) -> set[str]:
        return {digest for (digest,) in self._run("SELECT digest FROM version")}

    def bases(self) -> dict[str, str]:
        return dict(self._run("SELECT digest, base FROM version"))

    def features(self) -> dict[str, tuple[str, ...]]:
        """Of every version that has any, by digest."""
        rows = self._run("SELECT digest, features FROM version WHERE features != '[]'")
        return {digest: tuple(json.loads(features)) for digest, features in rows}

    def candidates(self) -> list[str]:
        rows = self._run("SELECT digest FROM version WHERE is_candidate ORDER BY created, digest")
        return [digest for (digest,) in rows]

    def insert_version(self, version: Version) -> None:
        self._run(
            f"INSERT INTO version ({_VERSION}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                version.digest,
                version.source,
                json.dumps(version.parents),
                json.dumps(dict(version.metrics)),
                version.num_bytes,
                version.rank,
                json.dumps(version.features),
                version.base,
                version.created,
            ),
        )

    def set_base(self, digest: str, base: str) -> None:
        self._run("UPDATE version SET base = ? WHERE digest = ?", (base, digest))

    def names_keeping(self, digest: str) -> list[str]:
        rows = self._run("SELECT name FROM kept WHERE digest = ? ORDER BY name", (digest,))
        return [name for (name,) in rows]

    def set_candidate(self, digest: str, is_candidate: bool) -> None:
        self._run("UPDATE version SET is_candidate = ? WHERE digest = ?", (is_candidate, digest))

    def set_active(self, name: str, digest: str, now: int, tenant: str) -> None:
        """Point ``name`` at ``digest``, making the name, for ``tenant``, if it is new."""
        self._run(
            "INSERT INTO name (name, digest, created, updated, tenant) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (name) DO UPDATE SET digest = excluded.digest, updated = excluded.updated",
            (name, digest, now, now, tenant),
        )

    def keep(self, name: str, digest: str, event: int) -> None:
        self._run(
            "INSERT INTO kept (name, digest, touched) VALUES (?, ?, ?) "
            "ON CONFLICT (name, digest) DO UPDATE SET touched = excluded.touched",
            (name, digest, event),
        )
        self.set_candidate(digest, False)

    def drop(self, name: str, digest: str) -> None:
        self._run("DELETE FROM kept WHERE name = ? AND digest = ?", (name, digest))

    def push(self, name: str, digest: str, event: int) -> None:
        """Put a kept version on top of the stack that rollbacks walk down."""
        self._run(
            "UPDATE kept SET activated = ? WHERE name = ? AND digest = ?", (event, name, digest)
        )

    def pop_to(self, name: str, digest: str) -> bool:
        """Take everything above ``digest`` off that stack; False if it is not on it."""
        level = first(
            self._run("SELECT activated FROM kept WHERE name = ? AND digest = ?", (name, digest))
        )
        if level is None:
            return False
        self._run(
            "UPDATE kept SET activated = NULL WHERE name = ? AND activated > ?", (name, level)
        )
        return True

    def previous(self, name: str) -> str | None:
        """The version below the active one on that stack."""
        return first(
            self._run(
                "SELECT digest FROM kept WHERE name = ? AND activated IS NOT NULL "
                "ORDER BY activated DESC LIMIT 1 OFFSET 1",
                (name,),
            )
        )

    def set_canary(self, name: str, canary: Canary) -> None:
        self._run(
            "INSERT OR REPLACE INTO canary (name, id, digest, weight) VALUES (?, ?, ?, ?)",
            (name, canary.id, canary.digest, canary.weight),
        )

    def clear_canary(self, name: str) -> None:
        self._run("DELETE FROM canary WHERE name = ?", (name,))

    def set_pinned(self, name: str, is_pinned: bool) -> None:
        self._run("UPDATE name SET is_pinned = ? WHERE name = ?", (is_pinned, name))

    def delete_name(self, name: str) -> None:
        self._run("DELETE FROM name WHERE name = ?", (name,))

    def record(
        self,
        name: str,
        action: str,
        now: int,
        *,
        start: str | None = None,
        end: str | None = None,
        weight: float | None = None,
        tenant: str = "",
        evidence: Mapping[str, Any] | None = None,
    ) -> int:
        """Append to the history; returns the event's id, above all earlier ones."""
        shown = None if evidence is None else json.dumps(evidence)
        cursor = self._run(
            "INSERT INTO history "
            "(name, action, time, from_digest, to_digest, weight, evidence, tenant) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (name, action, now, start, end, weight, shown, tenant),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def history(self, name: str, limit: int, view: str | None) -> list[HistoryEvent]:
        rows = self._run(
            f"SELECT {_EVENT} FROM history WHERE name = ? AND tenant IN ('', coalesce(?, tenant)) "
            "ORDER BY id DESC LIMIT ?",
            (name, view, limit),
        )
        return [
            HistoryEvent(*row, evidence=None if evidence is None else json.loads(evidence))
            for *row, evidence in rows
        ]

    def unkept(self) -> list[str]:
        """Published versions that no name keeps and no job goes on from, the oldest first."""
        rows = self._run(
            "SELECT digest FROM version WHERE NOT is_candidate "
            "AND digest NOT IN (SELECT digest FROM kept) AND digest NOT IN "
            "(SELECT start FROM job WHERE start IS NOT NULL AND finished IS NULL) "
            "ORDER BY created, digest"
        )
        return [digest for (digest,) in rows]

    def delete_versions(self, digests: Iterable[str]) -> None:
        for digest in digests:
            self._run("DELETE FROM version WHERE digest = ?", (digest,))
