"""Jobs, their logs and checkpoints in the one database: every change is one durable transaction.

What may follow what is decided here, by the condition of an UPDATE: of two changes that exclude
each other, such as the end and a cancellation, the first wins and the second is told so.
"""

import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from multiflora.adapters.database import Database

from .error import JobNotFound, JobOver, JobRuns
from .job import (
    FILE_PLACES,
    TERMINAL,
    Job,
    JobCheckpoint,
    JobError,
    JobNote,
    JobWish,
    Status,
    StoredNote,
    to_json,
)
from .job_row import COLUMNS, job_of

_OVER: Final = ", ".join(f"'{status}'" for status in TERMINAL)
_JOB_PREFIX, _EVENT_PREFIX, _CHECKPOINT_PREFIX = "ftjob-", "ftevent-", "ftckpt-"


class JobRegistry:
    """Safe to call from any thread; waits for the disk."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def create(
        self,
        wish: JobWish,
        *,
        name: Callable[[str], str],
        start: str | None,
        notes: Sequence[str],
        tenant: str | None = None,
    ) -> Job:
        """A job is acknowledged once this returns; ``name`` makes the result's name of its id.

        ``tenant`` None is that of the adapter which has the name.
        """
        job_id = _JOB_PREFIX + secrets.token_hex(12)
        result = name(job_id)
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO job (id, status, wish, name, start, tenant, created) "
                "VALUES (?, 'validating_files', ?, ?, ?, "
                "coalesce(?, (SELECT tenant FROM name WHERE name = ?), ''), ?)",
                (job_id, to_json(wish), result, start, tenant, result, self._now()),
            )
            self._write_notes(connection, job_id, [JobNote(message=text) for text in notes])
        return self.get(job_id)

    def get(self, job_id: str, *, view: str | None = None) -> Job:
        """Raises ``JobNotFound``; a tenant's ``view`` holds its own jobs and the shared ones."""
        found = self._select("id = ?", job_id)
        if not found or (view is not None and found[0].tenant not in ("", view)):
            raise JobNotFound(job_id)
        return found[0]

    def page(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        metadata: Mapping[str, str] | None = None,
        view: str | None = None,
    ) -> tuple[list[Job], bool]:
        """Up to ``limit`` jobs, the latest first, and whether more follow.

        Raises ``JobNotFound`` if there is no job ``after``.
        """
        conditions, values = ["1"], list[Any]()
        if view is not None:
            conditions.append("tenant IN ('', ?)")
            values.append(view)
        if after is not None:
            self.get(after, view=view)
            conditions.append("number < (SELECT number FROM job WHERE id = ?)")
            values.append(after)
        for key, value in (metadata or {}).items():
            conditions.append(
                "EXISTS (SELECT 1 FROM json_each(wish, '$.metadata') AS pair"
                " WHERE pair.key = ? AND pair.value = ?)"
            )
            values += [key, value]
        tail = f"ORDER BY number DESC LIMIT {limit + 1}"
        found = self._select(" AND ".join(conditions), *values, tail=tail)
        return found[:limit], len(found) > limit

    def unfinished(self) -> list[Job]:
        """Jobs that have not ended, the oldest first."""
        return self._select(f"status NOT IN ({_OVER})", tail="ORDER BY number")

    def counts(self) -> list[tuple[Status, bool | None, int]]:
        """How many jobs have a status and a verdict of the gate, if any."""
        with self._database.reading() as connection:
            found = connection.execute(
                "SELECT status, verdict ->> 'passed', count(*) FROM job GROUP BY 1, 2"
            ).fetchall()
        return [(status, None if is_ok is None else bool(is_ok), n) for status, is_ok, n in found]

    def plan(self, job_id: str, settings: Mapping[str, Any], note: str) -> bool:
        """The files are fine and the settings known: the job waits for its turn."""
        return self._change(
            job_id,
            "status = 'validating_files'",
            [JobNote(message=note)],
            status="queued",
            settings=to_json(settings),
        )

    def begin(self, job_id: str, *, step: int, num_steps: int, notes: Sequence[JobNote]) -> bool:
        """Training goes on after ``step``, for the first time or again."""
        return self._change(
            job_id,
            "status IN ('queued', 'running')",
            notes,
            status="running",
            step=step,
            num_steps=num_steps,
            started=self._now(),
            keep_first=frozenset({"started"}),
        )

    def requeue(self, job_id: str, note: JobNote) -> bool:
        """The engine is gone: the job waits for the next one."""
        return self._change(job_id, "status = 'running' AND NOT is_sealed", [note], status="queued")

    def progress(
        self, job_id: str, notes: Sequence[JobNote], *, step: int, trained_tokens: int | None
    ) -> bool:
        """False once the job has ended."""
        columns: dict[str, Any] = {"step": step}
        if trained_tokens is not None:
            columns["trained_tokens"] = trained_tokens
        return self._change(job_id, f"status NOT IN ({_OVER})", notes, **columns)

    def note(self, job_id: str, notes: Sequence[JobNote]) -> None:
        """Add to the log, also of a job that has ended."""
        with self._database.transaction() as connection:
            self._write_notes(connection, job_id, notes)

    def set_paused(self, job_id: str, is_paused: bool) -> Job:
        """Asking for what is so already is harmless. Raises ``JobNotFound``, ``JobOver``."""
        word = "paused" if is_paused else "resumed"
        notes = [JobNote(message=f"Fine-tuning job {word}")]
        changed = self._change(
            job_id,
            f"status NOT IN ({_OVER}) AND NOT is_sealed AND is_paused != {int(is_paused)}",
            notes,
            is_paused=int(is_paused),
        )
        job = self.get(job_id)
        if not changed and (job.is_over or job.is_sealed):
            raise JobOver(f"{job_id} {_state(job)}; it cannot be {word}")
        return job

    def take_candidate(self, job_id: str, digest: str) -> bool:
        """Remember the trained version, to be judged; False once the job has ended."""
        return self._change(job_id, f"status NOT IN ({_OVER})", [], digest=digest)

    def seal(self, job_id: str, *, digest: str, verdict: Mapping[str, Any], note: str) -> bool:
        """The gate was passed: from here on the job ends well. False if it was cancelled before."""
        return self._change(
            job_id,
            "status = 'running' AND NOT is_sealed",
            [JobNote(message=note)],
            is_sealed=1,
            digest=digest,
            verdict=to_json(verdict),
        )

    def succeed(self, job_id: str, note: str) -> bool:
        return self._end(job_id, "succeeded", "status = 'running' AND is_sealed", note)

    def fail(
        self,
        job_id: str,
        error: JobError,
        *,
        digest: str | None = None,
        verdict: Mapping[str, Any] | None = None,
    ) -> bool:
        """False if the job has ended before."""
        return self._end(
            job_id,
            "failed",
            f"status NOT IN ({_OVER})",
            f"The job failed: {error.message}",
            level="error",
            error=to_json(error),
            **({} if digest is None else {"digest": digest}),
            **({} if verdict is None else {"verdict": to_json(verdict)}),
        )

    def cancel(self, job_id: str) -> Job:
        """Raises ``JobNotFound``, and ``JobOver`` if the job has ended or is being published."""
        is_open = f"status NOT IN ({_OVER}) AND NOT is_sealed"
        changed = self._end(job_id, "cancelled", is_open, "The job has been cancelled")
        job = self.get(job_id)
        if not changed:
            raise JobOver(f"{job_id} {_state(job)}; it cannot be cancelled")
        return job

    def delete(self, job_id: str) -> None:
        """Forget a job with its log. Raises ``JobNotFound``; ``JobRuns`` if it has not ended."""
        if not self.get(job_id).is_over:
            raise JobRuns(f"{job_id} has not ended; cancel it first")
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM job WHERE id = ?", (job_id,))

    def need_of(self, file_id: str) -> str | None:
        """Why a file cannot be deleted: the job that reads it; None if there is none."""
        places = ", ".join(f"wish ->> '$.{place}'" for place in FILE_PLACES)
        wanted = f"? IN ({places})"
        found = self._select(f"status NOT IN ({_OVER}) AND {wanted}", file_id, tail="LIMIT 1")
        return f"the fine-tuning job {found[0].id} reads it" if found else None

    def notes(
        self, job_id: str, *, after: str | None = None, limit: int = 20
    ) -> tuple[list[StoredNote], bool]:
        """The log, the latest first. Raises ``JobNotFound``, also for an ``after`` not in it."""
        rows = self._page(
            "job_event", "id, created, level, kind, message, data", job_id, after, limit
        )
        found = [
            StoredNote(
                id=note_id,
                created=created,
                note=JobNote(message=message, level=level, kind=kind, data=_loads(data)),
            )
            for note_id, created, level, kind, message, data in rows
        ]
        return found[:limit], len(found) > limit

    def metrics(self, job_id: str, *, step: int | None = None) -> list[Mapping[str, Any]]:
        """Metrics in the order of their steps, of all or one; of repeated steps, the last."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT data FROM job_event WHERE job = ? AND kind = 'metrics' "
                "AND data ->> 'step' = coalesce(?, data ->> 'step') ORDER BY number",
                (job_id, step),
            ).fetchall()
        by_step: dict[tuple[int, bool], Mapping[str, Any]] = {}
        for (text,) in rows:
            data = _loads(text) or {}
            by_step[(data["step"], "eval_loss" in data)] = data
        return [by_step[key] for key in sorted(by_step)]

    def openai_metrics(self, job_id: str, step: int) -> dict[str, float]:
        """Of one step, those that OpenAI's checkpoints have."""
        found = {"step": float(step)}
        for row in self.metrics(job_id, step=step):
            found |= {n: v for n, v in row.items() if n.startswith(("train_", "valid_", "full_"))}
        return found

    def add_checkpoint(
        self, job_id: str, *, step: int, name: str, metrics: Mapping[str, float], is_best: bool
    ) -> bool:
        """A second checkpoint of one step, made after a restart, changes nothing: False."""
        with self._database.transaction() as connection:
            is_new = connection.execute(
                "INSERT OR IGNORE INTO job_checkpoint "
                "(id, job, step, name, metrics, is_best, created) VALUES (?, ?, ?, ?, ?, 0, ?)",
                (
                    *(_CHECKPOINT_PREFIX + secrets.token_hex(12), job_id, step, name),
                    *(to_json(metrics), self._now()),
                ),
            ).rowcount
            if is_best:
                best = "UPDATE job_checkpoint SET is_best = (step = ?) WHERE job = ?"
                connection.execute(best, (step, job_id))
        return bool(is_new)

    def checkpoints(
        self, job_id: str, *, after: str | None = None, limit: int = 10
    ) -> tuple[list[JobCheckpoint], bool]:
        """The latest first. Raises ``JobNotFound``, also for an ``after`` not among them."""
        columns = "id, job, step, name, metrics, is_best, created"
        found = [
            JobCheckpoint(
                id=checkpoint_id,
                job=job,
                step=step,
                name=name,
                metrics=_loads(metrics) or {},
                is_best=bool(is_best),
                created=created,
            )
            for checkpoint_id, job, step, name, metrics, is_best, created in self._page(
                "job_checkpoint", columns, job_id, after, limit
            )
        ]
        return found[:limit], len(found) > limit

    def remove_checkpoint(self, checkpoint_id: str) -> None:
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM job_checkpoint WHERE id = ?", (checkpoint_id,))

    def _end(self, job_id: str, status: Status, condition: str, note: str, **columns: Any) -> bool:
        level = columns.pop("level", "info")
        return self._change(
            job_id,
            condition,
            [JobNote(message=note, level=level)],
            status=status,
            is_paused=0,
            finished=self._now(),
            **columns,
        )

    def _change(
        self,
        job_id: str,
        condition: str,
        notes: Iterable[JobNote],
        *,
        keep_first: frozenset[str] = frozenset(),
        **columns: Any,
    ) -> bool:
        """Set columns and add to the log, if the condition holds; whether it did."""
        settings = ", ".join(
            f"{name} = coalesce({name}, ?)" if name in keep_first else f"{name} = ?"
            for name in columns
        )
        with self._database.transaction() as connection:
            done = connection.execute(
                f"UPDATE job SET {settings} WHERE id = ? AND {condition}",
                (*columns.values(), job_id),
            ).rowcount
            if done:
                self._write_notes(connection, job_id, notes)
        return bool(done)

    def _write_notes(self, connection: Any, job_id: str, notes: Iterable[JobNote]) -> None:
        connection.executemany(
            "INSERT INTO job_event (id, job, created, level, kind, message, data) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    *(_EVENT_PREFIX + secrets.token_hex(12), job_id, self._now(), note.level),
                    *(note.kind, note.message, None if note.data is None else to_json(note.data)),
                )
                for note in notes
            ],
        )

    def _page(
        self, table: str, columns: str, job_id: str, after: str | None, limit: int
    ) -> list[tuple[Any, ...]]:
        self.get(job_id)
        condition, values = "job = ?", [job_id]
        with self._database.reading() as connection:
            if after is not None:
                known = f"SELECT number FROM {table} WHERE job = ? AND id = ?"
                if connection.execute(known, (job_id, after)).fetchone() is None:
                    raise JobNotFound(after)
                condition += f" AND number < ({known})"
                values += [job_id, after]
            return connection.execute(
                f"SELECT {columns} FROM {table} WHERE {condition} "
                f"ORDER BY number DESC LIMIT {limit + 1}",
                values,
            ).fetchall()

    def _select(self, condition: str, *values: Any, tail: str = "") -> list[Job]:
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT {COLUMNS} FROM job WHERE {condition} {tail}", values
            ).fetchall()
        return [job_of(row) for row in rows]

    def _now(self) -> int:
        return int(self._clock())


def _loads(text: str | None) -> dict[str, Any] | None:
    return None if text is None else msgspec.json.decode(text, type=dict[str, Any])


def _state(job: Job) -> str:
    return f"is {job.status}" if job.is_over else "is being published"
