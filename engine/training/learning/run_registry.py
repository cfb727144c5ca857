"""Learning policies and runs in the one database: every change is one durable transaction.

    collecting --> training --> canary --> promoted | rolled_back
         |             `-> refused | superseded
         `--------> failed | cancelled

At most one run of an adapter is open, by an index. What a run takes is marked in the same
transaction that makes it, and is free again if nothing was learned.
"""

import secrets
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

import msgspec

from multiflora.adapters.database import Database

from ..feedback.completion import Kind
from .error import LearningRuns, RunNotFound
from .policy import LearningPolicy
from .run import GIVEN_UP, LearningRun, Status
from .traffic import Traffic

_PREFIX: Final = "learn-"
_COLUMNS: Final = (
    "id, adapter, status, num_rows, created, file, job, start, digest, traffic, verdict, reason, "
    "watched, finished"
)


class RunRegistry:
    """Safe to call from any thread; waits for the disk."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def policies(self) -> dict[str, LearningPolicy]:
        """Of every adapter that has one."""
        with self._database.reading() as connection:
            rows = connection.execute("SELECT adapter, policy FROM learning").fetchall()
        return {name: msgspec.json.decode(text, type=LearningPolicy) for name, text in rows}

    def set_policy(self, adapter: str, policy: LearningPolicy) -> bool:
        """False if there is no such adapter any more."""
        text = msgspec.json.encode(policy).decode()
        try:
            with self._database.transaction() as connection:
                connection.execute(
                    "INSERT INTO learning (adapter, policy, is_keeping, updated) "
                    "VALUES (?, ?, ?, ?) ON CONFLICT (adapter) DO UPDATE SET policy = "
                    "excluded.policy, is_keeping = excluded.is_keeping, updated = excluded.updated",
                    (adapter, text, policy.is_keeping, int(self._clock())),
                )
        except sqlite3.IntegrityError:
            return False
        return True

    def open_run(self, adapter: str, kinds: Collection[Kind]) -> LearningRun:
        """Make a run that takes all waiting feedback of ``kinds``. Raises ``LearningRuns``."""
        run_id, marks = _PREFIX + secrets.token_hex(12), ", ".join("?" * len(kinds))
        try:
            with self._database.transaction() as connection:
                connection.execute(
                    "INSERT INTO learning_run (id, adapter, status, num_rows, created) "
                    "VALUES (?, ?, 'collecting', 0, ?)",
                    (run_id, adapter, int(self._clock())),
                )
                connection.execute(
                    "UPDATE feedback SET run = ? WHERE run IS NULL "
                    f"AND kind IN ({marks}) AND completion IN "
                    "(SELECT number FROM completion WHERE adapter = ?)",
                    (run_id, *kinds, adapter),
                )
        except sqlite3.IntegrityError:
            raise LearningRuns(
                f"a learning run of {adapter!r} is under way; wait for its end, or cancel its job"
            ) from None
        return self.get(run_id)

    def get(self, run_id: str) -> LearningRun:
        """Raises ``RunNotFound``."""
        found = self._select("id = ?", run_id)
        if not found:
            raise RunNotFound(run_id)
        return found[0]

    def open_runs(self) -> list[LearningRun]:
        """Runs that have not ended, the oldest first."""
        return self._select("finished IS NULL", tail="ORDER BY number")

    def page(
        self, adapter: str, *, after: str | None = None, limit: int = 20
    ) -> tuple[list[LearningRun], bool]:
        """Up to ``limit`` runs, the latest first, and whether more follow.

        Raises ``RunNotFound`` if there is no run ``after``.
        """
        conditions, values = "adapter = ?", [adapter]
        if after is not None:
            self.get(after)
            conditions += " AND number < (SELECT number FROM learning_run WHERE id = ?)"
            values.append(after)
        found = self._select(conditions, *values, tail=f"ORDER BY number DESC LIMIT {limit + 1}")
        return found[:limit], len(found) > limit

    def set_file(self, run_id: str, file: str, *, num_rows: int, start: str) -> None:
        """The rows are in a file, to go on from the version ``start``."""
        self._change(run_id, "collecting", file=file, num_rows=num_rows, start=start)

    def set_job(self, run_id: str, job: str) -> bool:
        """The job was made; False if the run has ended."""
        return self._change(run_id, "collecting", status="training", job=job)

    def watch(self, run_id: str, digest: str) -> bool:
        """The version passed its gate and answers a share of the requests."""
        now = int(self._clock())
        return self._change(run_id, "training", status="canary", digest=digest, watched=now)

    def set_traffic(self, run_id: str, traffic: Traffic) -> None:
        """What was counted so far."""
        self._change(run_id, "canary", traffic=msgspec.json.encode(traffic).decode())

    def end(
        self,
        run_id: str,
        status: Status,
        reason: str,
        *,
        digest: str | None = None,
        verdict: Any = None,
    ) -> bool:
        """False if the run has ended before. What a run that learned nothing took waits again."""
        columns: dict[str, Any] = {"status": status, "reason": reason[:1000]}
        if digest is not None:
            columns["digest"] = digest
        if verdict is not None:
            columns["verdict"] = msgspec.json.encode(verdict).decode()
        columns["finished"] = int(self._clock())
        with self._database.transaction() as connection:
            done = _update(connection, run_id, "finished IS NULL", columns)
            if done and status in GIVEN_UP:
                connection.execute("UPDATE feedback SET run = NULL WHERE run = ?", (run_id,))
        return done

    def num_failures(self, adapter: str) -> tuple[int, int]:
        """How many of the last runs in a row came to nothing, and when the last of them ended."""
        found, _ = self.page(adapter, limit=20)
        num_failures = 0
        for run in found:
            if run.status not in GIVEN_UP:
                break
            num_failures += 1
        return num_failures, (found[0].finished or 0) if num_failures else 0

    def _change(self, run_id: str, stage: Status, **columns: Any) -> bool:
        with self._database.transaction() as connection:
            condition = f"finished IS NULL AND status = '{stage}'"
            return _update(connection, run_id, condition, columns)

    def _select(self, condition: str, *values: Any, tail: str = "") -> list[LearningRun]:
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM learning_run WHERE {condition} {tail}", values
            ).fetchall()
        return [_run(row) for row in rows]


def _update(
    connection: sqlite3.Connection, run_id: str, condition: str, columns: Mapping[str, Any]
) -> bool:
    settings = ", ".join(f"{name} = ?" for name in columns)
    sql = f"UPDATE learning_run SET {settings} WHERE id = ? AND {condition}"
    return bool(connection.execute(sql, (*columns.values(), run_id)).rowcount)


def _run(row: Sequence[Any]) -> LearningRun:
    values: dict[str, Any] = dict(zip(_COLUMNS.split(", "), row, strict=True))
    traffic, verdict = values.pop("traffic"), values.pop("verdict")
    return LearningRun(
        **values,
        traffic=Traffic() if traffic is None else msgspec.json.decode(traffic, type=Traffic),
        verdict=None if verdict is None else msgspec.json.decode(verdict, type=dict[str, Any]),
    )
