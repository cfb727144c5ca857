"""Kept answers and what users said about them, in the one database.

Whether an adapter opted in is a condition of the statement that writes: no caller can store what
was not allowed. What is deleted is overwritten (`Database.scrub`), and goes from the reservoirs of
replay by the same transaction. A ``view`` is the tenant whose answers are there, None all of them.
"""

import json
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Final

from multiflora.adapters.database import Database, first

from .completion import Completion, Feedback, Kind, Opinion, Waiting
from .error import CompletionNotFound, FeedbackNotFound

_PREFIX: Final = "fb-"
_COMPLETION: Final = (
    "completion.id, choice, adapter, digest, prompt, answer, completion.created, tenant, user, "
    "is_cut"
)
_FEEDBACK: Final = f"feedback.id, kind, value, feedback.created, run, {_COMPLETION}"
_BOTH: Final = "feedback JOIN completion ON completion.number = feedback.completion"


class FeedbackStore:
    """Safe to call from any thread; waits for the disk."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def keep(self, completions: Iterable[Completion]) -> None:
        """Store answers of adapters that keep theirs; others are dropped."""
        rows = [
            (
                *(one.id, one.choice, one.adapter, one.digest, json.dumps(one.prompt), one.answer),
                *(one.created, one.tenant, one.user, one.is_cut, one.adapter),
            )
            for one in completions
        ]
        with self._database.transaction() as connection:
            connection.executemany(
                "INSERT OR IGNORE INTO completion (id, choice, adapter, digest, prompt, answer, "
                "created, tenant, user, is_cut) SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ? "
                "WHERE EXISTS (SELECT 1 FROM learning WHERE adapter = ? AND is_keeping)",
                rows,
            )

    def add(
        self,
        completion_id: str,
        kind: Kind,
        value: str,
        *,
        choice: int = 0,
        view: str | None = None,
    ) -> Feedback:
        """Store what a user said; a second word of the same kind replaces the first.

        Raises ``CompletionNotFound``, also for an answer out of ``view``.
        """
        feedback_id = _PREFIX + secrets.token_hex(12)
        with self._database.transaction() as connection:
            number = first(
                connection.execute(
                    "SELECT number FROM completion WHERE id = ? AND choice = ? "
                    "AND tenant = coalesce(?, tenant)",
                    (completion_id, choice, view),
                )
            )
            if number is None:
                raise CompletionNotFound(completion_id, choice)
            earlier = "FROM feedback WHERE completion = ? AND kind = ?"
            connection.execute(
                f"DELETE FROM replay_row WHERE feedback IN (SELECT id {earlier})", (number, kind)
            )
            connection.execute(f"DELETE {earlier}", (number, kind))
            connection.execute(
                "INSERT INTO feedback (id, completion, kind, value, created) "
                "VALUES (?, ?, ?, ?, ?)",
                (feedback_id, number, kind, value, int(self._clock())),
            )
        return self.get(feedback_id)

    def get(self, feedback_id: str, *, view: str | None = None) -> Feedback:
        """Raises ``FeedbackNotFound``."""
        found = self._select("feedback.id = ? AND tenant = coalesce(?, tenant)", feedback_id, view)
        if not found:
            raise FeedbackNotFound(feedback_id)
        return found[0]

    def page(
        self,
        *,
        adapter: str | None = None,
        after: str | None = None,
        limit: int = 20,
        view: str | None = None,
    ) -> tuple[list[Feedback], bool]:
        """Up to ``limit`` pieces, the latest first, and whether more follow.

        Raises ``FeedbackNotFound`` if there is no feedback ``after``.
        """
        conditions, values = ["tenant = coalesce(?, tenant)"], [view]
        if adapter is not None:
            conditions.append("adapter = ?")
            values.append(adapter)
        if after is not None:
            self.get(after, view=view)
            conditions.append("feedback.number < (SELECT number FROM feedback WHERE id = ?)")
            values.append(after)
        tail = f"ORDER BY feedback.number DESC LIMIT {limit + 1}"
        found = self._select(" AND ".join(conditions), *values, tail=tail)
        return found[:limit], len(found) > limit

    def of_adapter(
        self,
        adapter: str,
        kinds: Collection[Kind],
        *,
        run: str | None = None,
        view: str | None = None,
    ) -> list[Feedback]:
        """All feedback of these kinds, the oldest first; with ``run``, what that run took."""
        condition = f"adapter = ? AND kind IN ({', '.join('?' * len(kinds))})"
        condition += " AND tenant = coalesce(?, tenant)"
        values = [adapter, *kinds, view]
        if run is not None:
            condition, values = f"{condition} AND run = ?", [*values, run]
        return self._select(condition, *values, tail="ORDER BY feedback.number")

    def answers(self, completion_id: str) -> list[str]:
        """The answers of all choices that are kept."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT answer FROM completion WHERE id = ? ORDER BY choice", (completion_id,)
            )
            return [answer for (answer,) in rows]

    def waiting(self, adapter: str, kinds: Collection[Kind]) -> Waiting:
        """What a run could take now."""
        marks = ", ".join("?" * len(kinds))
        with self._database.reading() as connection:
            row = connection.execute(
                f"SELECT count(*), min(feedback.created) FROM {_BOTH} "
                f"WHERE adapter = ? AND run IS NULL AND kind IN ({marks})",
                (adapter, *kinds),
            ).fetchone()
        return Waiting(*row)

    def opinion(self, adapter: str, digest: str, *, since: int) -> Opinion:
        """On answers of a version since a Unix time: what was mended or beaten was not liked."""
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT count(*) FILTER (WHERE is_liked), count(*) FILTER (WHERE NOT is_liked) "
                f"FROM (SELECT min(kind = 'rating' AND value = 'up') AS is_liked FROM {_BOTH} "
                "WHERE adapter = ? AND digest = ? AND completion.created >= ? "
                "GROUP BY completion.number)",
                (adapter, digest, since),
            ).fetchone()
        return Opinion(*row)

    def numbers(self, adapter: str, *, view: str | None = None) -> tuple[int, int]:
        """How many answers, and how much feedback, are kept of an adapter."""
        condition, values = "adapter = ? AND tenant = coalesce(?, tenant)", (adapter, view)
        with self._database.reading() as connection:
            completions, feedback = (
                first(connection.execute(f"SELECT count(*) FROM {rows} WHERE {condition}", values))
                for rows in ("completion", _BOTH)
            )
        return completions, feedback

    def runs_of(
        self, *, adapter: str | None = None, user: str | None = None, view: str | None = None
    ) -> list[str]:
        """Runs that read what ``erase`` would remove: that took it, or may repeat it."""
        condition, values = _whose(adapter, user, view)
        return self._runs(condition, condition, values)

    def runs_with(self, feedback_id: str, *, view: str | None = None) -> list[str]:
        """Runs that read what ``delete`` would remove."""
        mine = "tenant = coalesce(?, tenant)"
        values = [feedback_id, view]
        return self._runs(f"feedback.id = ? AND {mine}", f"feedback = ? AND {mine}", values)

    def _runs(self, taken: str, repeated: str, values: Sequence[Any]) -> list[str]:
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT run FROM {_BOTH} WHERE run IS NOT NULL AND {taken} "
                "UNION SELECT id FROM learning_run WHERE finished IS NULL "
                f"AND adapter IN (SELECT adapter FROM replay_row WHERE {repeated})",
                (*values, *values),
            )
            return [run for (run,) in rows]

    def delete(self, feedback_id: str, *, view: str | None = None) -> None:
        """Remove feedback, what is repeated of it, and its answer unless there is more on it.

        Raises ``FeedbackNotFound``.
        """
        with self._database.lock:
            found = self._select(
                "feedback.id = ? AND tenant = coalesce(?, tenant)", feedback_id, view
            )
            with self._database.transaction() as connection:
                num_repeated = connection.execute(
                    "DELETE FROM replay_row WHERE feedback = ? AND tenant = coalesce(?, tenant)",
                    (feedback_id, view),
                ).rowcount
                if not found and not num_repeated:
                    raise FeedbackNotFound(feedback_id)
                for one in found:
                    connection.execute("DELETE FROM feedback WHERE id = ?", (feedback_id,))
                    connection.execute(
                        "DELETE FROM completion WHERE id = ? AND choice = ? AND NOT EXISTS "
                        "(SELECT 1 FROM feedback WHERE feedback.completion = completion.number)",
                        (one.completion.id, one.completion.choice),
                    )
            self._database.scrub()

    def erase(
        self, *, adapter: str | None = None, user: str | None = None, view: str | None = None
    ) -> tuple[int, int]:
        """Remove all answers of an adapter, a user, or a user of an adapter, with their feedback.

        Returns how many answers and how much feedback went. One of the two must be given.
        """
        condition, values = _whose(adapter, user, view)
        with self._database.lock:
            with self._database.transaction() as connection:
                connection.execute(f"DELETE FROM replay_row WHERE {condition}", values)
                num_feedback = first(
                    connection.execute(f"SELECT count(*) FROM {_BOTH} WHERE {condition}", values)
                )
                num_completions = connection.execute(
                    f"DELETE FROM completion WHERE {condition}", values
                ).rowcount
            self._database.scrub()
        return num_completions, num_feedback

    def trim(self, adapter: str, *, num_completions: int, oldest: int) -> int:
        """Remove answers before ``oldest``, then those beyond ``num_completions``.

        Those without feedback go first, the oldest first. What was taught with them is repeated on
        until it is too old. Returns how many went.
        """
        with self._database.transaction() as connection:
            num_repeated = connection.execute(
                "DELETE FROM replay_row WHERE adapter = ? AND created < ?", (adapter, oldest)
            ).rowcount
            num_removed = connection.execute(
                "DELETE FROM completion WHERE adapter = ? AND created < ?", (adapter, oldest)
            ).rowcount
            num_removed += connection.execute(
                "DELETE FROM completion WHERE number IN (SELECT number FROM completion "
                "WHERE adapter = ? ORDER BY EXISTS (SELECT 1 FROM feedback WHERE "
                "feedback.completion = completion.number) DESC, number DESC LIMIT -1 OFFSET ?)",
                (adapter, num_completions),
            ).rowcount
        if num_removed or num_repeated:
            self._database.scrub()
        return num_removed

    def scrub(self, *, keep_copies: bool) -> None:
        """Leave nothing of what went with a name in the database's log, nor in its copies.

        Raises ``RegistryUnavailable`` at once if another program reads the database.
        """
        self._database.scrub(is_patient=False, keep_copies=keep_copies)

    def _select(self, condition: str, *values: Any, tail: str = "") -> list[Feedback]:
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT {_FEEDBACK} FROM {_BOTH} WHERE {condition} {tail}", values
            ).fetchall()
        return [_feedback(row) for row in rows]


def _feedback(row: Sequence[Any]) -> Feedback:
    feedback_id, kind, value, created, run, *rest = row
    names = ("id", "choice", "adapter", "digest", "prompt", "answer", "created", "tenant", "user")
    *plain, is_cut = rest
    values = dict(zip(names, plain, strict=True))
    values["prompt"] = json.loads(values["prompt"])
    return Feedback(
        id=feedback_id,
        kind=kind,
        value=value,
        created=created,
        run=run,
        completion=Completion(**values, is_cut=bool(is_cut)),
    )


def _whose(adapter: str | None, user: str | None, view: str | None) -> tuple[str, list[str]]:
    if adapter is None and user is None:
        raise ValueError("nobody is named; say whose feedback, by adapter or user")
    given = {"adapter": adapter, "user": user, "tenant": view}
    named = {name: value for name, value in given.items() if value is not None}
    return " AND ".join(f"{name} = ?" for name in named), list(named.values())
