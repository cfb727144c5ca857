"""Begins runs: waiting feedback becomes a file, and that a job which goes on from what is live."""

import asyncio
import secrets
from collections.abc import Iterable
from typing import Final

from ...errors import RequestRejected
from ..data.file_registry import FileRegistry
from ..feedback.feedback_store import FeedbackStore
from ..feedback.training_row import KINDS, Row, as_jsonl, row_kind_of, rows_of
from ..jobs.job import Job, JobWish
from ..jobs.settings import read_hyperparameters
from ..jobs.training_jobs import SERVER, JobOwner, TrainingJobs
from .policy import LearningPolicy
from .replay_registry import ReplayRegistry
from .run import LearningRun
from .run_registry import RunRegistry
from .run_rows import hold_out, of_file, replayed

RUN_KEY: Final = "learning_run"
_PURPOSE: Final = "fine-tune"


class RunStart:
    """``begin`` is walked again by ``recover`` where a server died on the way."""

    def __init__(
        self,
        runs: RunRegistry,
        store: FeedbackStore,
        *,
        replay: ReplayRegistry,
        files: FileRegistry,
        jobs: TrainingJobs,
    ) -> None:
        self._runs = runs
        self._store = store
        self._replay = replay
        self._files = files
        self._jobs = jobs

    def check(
        self, name: str, policy: LearningPolicy, live: str, *, owner: JobOwner = SERVER
    ) -> None:
        """Raise ``RequestRejected`` or ``AdapterRejected`` for what no job could run with.

        ``owner`` is who names the policy's files.
        """
        if policy.enabled:
            self._jobs.check(_wish(name, policy, "", training_file="", replay_file=""), start=live)
        for place, file in policy.files.items():
            self._jobs.check_file(file, place, owner)

    async def begin(
        self, run: LearningRun, policy: LearningPolicy, *, live: str, tenant: str
    ) -> Job:
        """Raises as ``check`` does, also if nothing that the run took can be learned from."""
        wish = await asyncio.to_thread(self._write, run, policy, live, tenant)
        job = await self._jobs.create(wish, start=live)
        await asyncio.to_thread(self._runs.set_job, run.id, job.id)
        return job

    async def recover(self, run: LearningRun) -> bool:
        """Whether the job of a run that had just begun was made."""
        found, _ = await asyncio.to_thread(self._jobs.rows.page, metadata={RUN_KEY: run.id})
        if found:
            await asyncio.to_thread(self._runs.set_job, run.id, found[0].id)
        return bool(found)

    def _write(self, run: LearningRun, policy: LearningPolicy, live: str, tenant: str) -> JobWish:
        kind, name = row_kind_of(policy.method), run.adapter
        feedback = self._store.of_adapter(name, KINDS[kind], run=run.id)
        rows = rows_of(feedback, kind, self._store.answers)
        if not rows:
            raise RequestRejected(
                f"there is nothing for {name!r} to learn: method {policy.method} needs "
                f"feedback of the kind {' or '.join(KINDS[kind])} that no run has taken"
            )
        learnt, apart = hold_out(rows, 0.0 if policy.validation_file else policy.hold_out)
        training_file = self._add(f"feedback-{name}", learnt, tenant)
        self._runs.set_file(run.id, training_file, num_rows=len(learnt), start=live)
        repeated = self._replayed(name, policy, rows)
        return _wish(
            *(name, policy, run.id),
            training_file=training_file,
            held_out=self._add(f"held-out-{name}", apart, tenant) if apart else None,
            replay_file=self._add(f"replay-{name}", repeated, tenant) if repeated else None,
        )

    def _replayed(self, name: str, policy: LearningPolicy, rows: list[Row]) -> list[Row]:
        """Of what the adapter was taught: its reservoir, and the policy's file beside it."""
        if not policy.replay_capacity:
            return []
        reservoir = self._replay.reservoir(name, capacity=policy.replay_capacity)
        if file := policy.files.get("replay.file"):
            with self._files.open(file) as opened:
                reservoir.add(of_file(opened))
        return replayed(reservoir, rows)

    def _add(self, name: str, rows: Iterable[Row], tenant: str) -> str:
        """Keep rows in a file of the server's own; returns its id."""
        with self._files.staging() as folder:
            staged = folder / "rows"
            staged.write_bytes(b"".join(as_jsonl(rows)))
            stored = self._files.add(
                staged,
                filename=f"{name}.jsonl",
                purpose=_PURPOSE,
                status="processed",
                is_internal=True,
                tenant=tenant,
            )
        return stored.id


def _wish(
    name: str,
    policy: LearningPolicy,
    run_id: str,
    *,
    training_file: str,
    replay_file: str | None,
    held_out: str | None = None,
) -> JobWish:
    has_beta = policy.method != "supervised"
    return JobWish(
        model=name,
        training_file=training_file,
        validation_file=policy.validation_file or held_out,
        suffix=name,
        seed=secrets.randbelow(1 << 31) if policy.seed is None else policy.seed,
        method=policy.method,
        hyperparameters=read_hyperparameters(
            policy.hyperparameters, "hyperparameters", has_beta=has_beta
        ),
        training=policy.sections(replay_file=replay_file),
        metadata={RUN_KEY: run_id},
    )
