"""Batches and their results in the one database: what was answered stays answered."""

import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from multiflora.adapters.database import Database, first
from multiflora.adapters.error import RegistryError

from .refusal import QueueFull

_COLUMNS: Final = (
    "id, endpoint, input_file, status, metadata, total, output_file, error_file, errors, created, "
    "started, finished, expires, tenant, key"
)
_LIFETIME_SECONDS: Final = 24 * 3600
_OPEN: Final = "status IN ('validating', 'in_progress', 'cancelling')"
_MAX_RESULT_PAGE: Final = 200
_MAX_OPEN: Final = 100
_RETRY_SECONDS: Final = 60


class UnknownBatch(RegistryError, KeyError):
    """No batch has this id."""

    code = "batch_not_found"

    def __init__(self, batch_id: str) -> None:
        super().__init__(f"no batch has the id {batch_id[:100]!r}")


class BatchOver(RegistryError):
    """A batch that has ended cannot be cancelled."""

    code = "batch_over"


@dataclass(frozen=True, slots=True)
class Batch:
    """What is known of a batch; times are Unix times, ``metadata`` and ``errors`` are JSON.

    ``key`` is the id of the API key that its lines are asked with, empty without keys.
    """

    id: str
    endpoint: str
    input_file: str
    status: str
    metadata: str
    total: int
    output_file: str | None
    error_file: str | None
    errors: str | None
    created: int
    started: int | None
    finished: int | None
    expires: int
    tenant: str
    key: str


class BatchStore:
    """Safe to call from any thread; what may follow what is the condition of an UPDATE."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def create(
        self,
        *,
        endpoint: str,
        input_file: str,
        metadata: Mapping[str, str],
        tenant: str = "",
        key: str = "",
    ) -> Batch:
        """Queue it. Raises ``QueueFull`` where too many of the tenant's wait."""
        now = int(self._clock())
        batch_id = f"batch_{secrets.token_hex(12)}"
        terms = (endpoint, input_file, json.dumps(metadata), tenant, key)
        with self._database.transaction() as connection:
            count = f"SELECT count(*) FROM batch WHERE tenant = ? AND {_OPEN}"
            if first(connection.execute(count, (tenant,))) >= _MAX_OPEN:
                raise QueueFull(
                    f"{_MAX_OPEN} batches wait; make more when some have ended",
                    retry_after_seconds=_RETRY_SECONDS,
                )
            connection.execute(
                "INSERT INTO batch (id, endpoint, input_file, metadata, tenant, key, created, "
                "expires) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (batch_id, *terms, now, now + _LIFETIME_SECONDS),
            )
        return self.get(batch_id)

    def get(self, batch_id: str, *, view: str | None = None) -> Batch:
        """Raises ``UnknownBatch``; a tenant's ``view`` holds its own and the shared ones."""
        found = self._select("id = ?", batch_id)
        if not found or (view is not None and found[0].tenant not in ("", view)):
            raise UnknownBatch(batch_id)
        return found[0]

    def page(
        self, *, after: str | None, limit: int, view: str | None = None
    ) -> tuple[list[Batch], bool]:
        """The latest first, and whether more follow. Raises ``UnknownBatch`` for ``after``."""
        conditions, values = ["1"], list[Any]()
        if view is not None:
            conditions.append("tenant IN ('', ?)")
            values.append(view)
        if after is not None:
            self.get(after, view=view)
            conditions.append("number < (SELECT number FROM batch WHERE id = ?)")
            values.append(after)
        tail = f"ORDER BY number DESC LIMIT {limit + 1}"
        found = self._select(" AND ".join(conditions), *values, tail=tail)
        return found[:limit], len(found) > limit

    def next_open(self) -> list[Batch]:
        """The oldest batch of each tenant that has not ended."""
        oldest = f"SELECT min(number) FROM batch WHERE {_OPEN} GROUP BY tenant"
        return self._select(f"number IN ({oldest})", tail="ORDER BY number")

    def why_needed(self, file_id: str) -> str | None:
        """Why a file cannot be deleted now, if a batch reads it."""
        found = self._select(f"input_file = ? AND {_OPEN}", file_id, tail="LIMIT 1")
        return f"{found[0].id} reads it" if found else None

    def begin(self, batch_id: str, *, total: int) -> None:
        """The input is fine."""
        self._update(
            "SET status = 'in_progress', total = ?, started = ? WHERE id = ? AND "
            "status = 'validating'",
            total,
            int(self._clock()),
            batch_id,
        )

    def cancel(self, batch_id: str) -> Batch:
        """Answer no more of it. Raises ``UnknownBatch``, and ``BatchOver`` if it has ended."""
        changed = self._update(f"SET status = 'cancelling' WHERE id = ? AND {_OPEN}", batch_id)
        batch = self.get(batch_id)
        if not changed:
            raise BatchOver(f"{batch_id} has ended: it is {batch.status}")
        return batch

    def fail(self, batch_id: str, errors: Sequence[Mapping[str, Any]]) -> None:
        self._update(
            f"SET status = 'failed', errors = ?, finished = ? WHERE id = ? AND {_OPEN}",
            json.dumps(errors),
            int(self._clock()),
            batch_id,
        )

    def finish(
        self, batch_id: str, *, status: str, output_file: str | None, error_file: str | None
    ) -> None:
        """End it; its results are in files, and go from here."""
        now = int(self._clock())
        answered, failed = self.counts(batch_id)
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE batch SET status = ?, answered = ?, failed = ?, output_file = ?, "
                f"error_file = ?, finished = ? WHERE id = ? AND {_OPEN}",
                (status, answered, failed, output_file, error_file, now, batch_id),
            )
            connection.execute("DELETE FROM batch_result WHERE batch = ?", (batch_id,))

    def is_expired(self, batch: Batch) -> bool:
        return self._clock() >= batch.expires

    def add_result(self, batch_id: str, line: int, result: str, *, is_error: bool) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO batch_result VALUES (?, ?, ?, ?)",
                (batch_id, line, is_error, result),
            )

    def answered(self, batch_id: str) -> set[int]:
        """Lines that have a result."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT line FROM batch_result WHERE batch = ?", (batch_id,)
            ).fetchall()
        return {line for (line,) in rows}

    def counts(self, batch_id: str) -> tuple[int, int]:
        """How many lines were answered, and how many of them with an error."""
        with self._database.reading() as connection:
            kept = connection.execute(
                "SELECT answered, failed FROM batch WHERE id = ? AND finished IS NOT NULL",
                (batch_id,),
            ).fetchone()
            return (
                kept
                or connection.execute(
                    "SELECT count(*), coalesce(sum(is_error), 0) FROM batch_result WHERE batch = ?",
                    (batch_id,),
                ).fetchone()
            )

    def results(self, batch_id: str, *, is_error: bool) -> Iterator[str]:
        """Results in the order of their lines, a page at a time."""
        last = -1
        while True:
            with self._database.reading() as connection:
                rows = connection.execute(
                    "SELECT line, result FROM batch_result WHERE batch = ? AND is_error = ? "
                    f"AND line > ? ORDER BY line LIMIT {_MAX_RESULT_PAGE}",
                    (batch_id, is_error, last),
                ).fetchall()
            if not rows:
                return
            yield from (result for _, result in rows)
            last = rows[-1][0]

    def _update(self, change: str, *values: object) -> bool:
        with self._database.transaction() as connection:
            return connection.execute(f"UPDATE batch {change}", values).rowcount > 0

    def _select(self, condition: str, *values: object, tail: str = "") -> list[Batch]:
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM batch WHERE {condition} {tail}", values
            ).fetchall()
        return [Batch(*row) for row in rows]
