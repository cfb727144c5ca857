"""Begins runs: waiting feedback becomes a file, and that a job which goes on from what is live."""

import asyncio
import secrets
from typing import Final

from ...errors import RequestRejected
from ..data.file_registry import FileRegistry
from ..feedback.feedback_store import FeedbackStore
from ..feedback.training_row import KINDS, as_jsonl, row_kind_of, rows_of
from ..jobs.job import Job, JobWish
from ..jobs.settings import read_hyperparameters
from ..jobs.training_jobs import TrainingJobs
from .policy import LearningPolicy
from .run import LearningRun
from .run_registry import RunRegistry

RUN_KEY: Final = "learning_run"
_PURPOSE: Final = "fine-tune"


class RunStart:
    """``begin`` is walked again by ``recover`` where a server died on the way."""

    def __init__(
        self, runs: RunRegistry, store: FeedbackStore, files: FileRegistry, jobs: TrainingJobs
    ) -> None:
        self._runs = runs
        self._store = store
        self._files = files
        self._jobs = jobs

    def check(self, name: str, policy: LearningPolicy, live: str) -> None:
        """Raise ``RequestRejected`` or ``AdapterRejected`` for what no job could run with."""
        if policy.enabled:
            self._jobs.check(_wish(name, policy, "", ""), start=live)
        if policy.validation_file is not None:
            self._jobs.check_file(policy.validation_file, "validation_file")

    async def begin(self, run: LearningRun, policy: LearningPolicy, *, live: str) -> Job:
        """Raises as ``check`` does, also if nothing that the run took can be learned from."""
        file_id = await asyncio.to_thread(self._write, run, policy, live)
        job = await self._jobs.create(_wish(run.adapter, policy, file_id, run.id), start=live)
        await asyncio.to_thread(self._runs.set_job, run.id, job.id)
        return job

    async def recover(self, run: LearningRun) -> bool:
        """Whether the job of a run that had just begun was made."""
        found, _ = await asyncio.to_thread(self._jobs.rows.page, metadata={RUN_KEY: run.id})
        if found:
            await asyncio.to_thread(self._runs.set_job, run.id, found[0].id)
        return bool(found)

    def _write(self, run: LearningRun, policy: LearningPolicy, live: str) -> str:
        kind = row_kind_of(policy.method)
        feedback = self._store.of_adapter(run.adapter, KINDS[kind], run=run.id)
        rows = rows_of(feedback, kind, self._store.answers)
        if not rows:
            raise RequestRejected(
                f"there is nothing for {run.adapter!r} to learn: method {policy.method} needs "
                f"feedback of the kind {' or '.join(KINDS[kind])} that no run has taken"
            )
        with self._files.staging() as folder:
            staged = folder / "rows"
            staged.write_bytes(b"".join(as_jsonl(rows)))
            stored = self._files.add(
                staged,
                filename=f"feedback-{run.adapter}.jsonl",
                purpose=_PURPOSE,
                status="processed",
                is_internal=True,
            )
        self._runs.set_file(run.id, stored.id, num_rows=len(rows), start=live)
        return stored.id


def _wish(name: str, policy: LearningPolicy, file_id: str, run_id: str) -> JobWish:
    is_dpo = policy.method == "dpo"
    return JobWish(
        model=name,
        training_file=file_id,
        validation_file=policy.validation_file,
        suffix=name,
        seed=secrets.randbelow(1 << 31),
        method=policy.method,
        hyperparameters=read_hyperparameters(
            policy.hyperparameters, "hyperparameters", is_dpo=is_dpo
        ),
        training=policy.sections(),
        metadata={RUN_KEY: run_id},
    )
