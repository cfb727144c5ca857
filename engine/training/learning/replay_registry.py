"""The reservoirs of all adapters in the one database; they go with their adapters.

What is erased from the feedback that rows were made of is erased here by the same transaction: see
``FeedbackStore``.
"""

from collections.abc import Iterable
from typing import Any, Final

import orjson

from multiflora.adapters.database import Database

from ..replay.reservoir import ReplayRow, Reservoir

_COLUMNS: Final = "source, task, key, feedback, tenant, user, created, fields"


class ReplayRegistry:
    """Safe to call from any thread; waits for the disk."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def reservoir(self, adapter: str, *, capacity: int) -> Reservoir:
        """What the adapter has, as a copy of at most ``capacity`` rows."""
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM replay_row WHERE adapter = ?", (adapter,)
            ).fetchall()
            thresholds = connection.execute(
                "SELECT source, task, threshold FROM replay_threshold WHERE adapter = ?", (adapter,)
            ).fetchall()
        strata = {(source, task): threshold for source, task, threshold in thresholds}
        return Reservoir.restored(capacity, map(_row, rows), strata)

    def add(self, adapter: str, rows: Iterable[ReplayRow], *, capacity: int) -> None:
        """Offer rows; what was taught of the same questions before is forgotten.

        Nothing happens to an adapter without a policy: it is gone.
        """
        taught = list(rows)
        keys = {row.key for row in taught}
        with self._database.lock:
            reservoir = self.reservoir(adapter, capacity=capacity)
            reservoir.erase(lambda row: row.key in keys)
            reservoir.add(taught)
            self._replace(adapter, reservoir)

    def _replace(self, adapter: str, reservoir: Reservoir) -> None:
        rows = [(adapter, *_columns(row), adapter) for row in reservoir]
        strata = [(adapter, *name, least, adapter) for name, least in reservoir.thresholds.items()]
        known = "WHERE EXISTS (SELECT 1 FROM learning WHERE adapter = ?)"
        with self._database.transaction() as connection:
            for table in ("replay_row", "replay_threshold"):
                connection.execute(f"DELETE FROM {table} WHERE adapter = ?", (adapter,))
            connection.executemany(
                f"INSERT INTO replay_row (adapter, {_COLUMNS}) "
                f"SELECT ?, ?, ?, ?, ?, ?, ?, ?, ? {known}",
                rows,
            )
            connection.executemany(
                "INSERT INTO replay_threshold (adapter, source, task, threshold) "
                f"SELECT ?, ?, ?, ? {known}",
                strata,
            )


def _columns(row: ReplayRow) -> tuple[Any, ...]:
    whose = (row.feedback, row.tenant, row.user, row.created)
    return (row.source, row.task, row.key, *whose, orjson.dumps(row.fields).decode())


def _row(columns: tuple[Any, ...]) -> ReplayRow:
    values: dict[str, Any] = dict(zip(_COLUMNS.split(", "), columns, strict=True))
    return ReplayRow(**{**values, "fields": orjson.loads(values["fields"])})
