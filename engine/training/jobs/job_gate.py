"""A job's trained version before the quality gate, for as long as it takes the engine to answer."""

import asyncio
from dataclasses import dataclass
from typing import Any, Final

from ...errors import EngineUnavailable, RequestFailed
from ..data.dataset import PreparedDataset
from ..gate.asker import Asker
from ..gate.judge import AdapterJudge, HttpJudge, Judge
from ..gate.quality_gate import QualityGate
from ..gate.verdict import Check, Verdict
from ..job import JobEnded
from ..row_scores import read_scores
from .job import Job
from .job_folder import JobFolder
from .settings import gate_policy
from .workshop import Workshop

# So often in a row an engine may die without a step forward before the job is taken for the cause.
MAX_DEATHS: Final = 5
_TRANSIENT: Final = frozenset({"engine_unavailable", "engine_died", "adapter_unavailable"})


@dataclass(frozen=True, slots=True)
class JobGate:
    """The gate of one job."""

    _shop: Workshop
    _folder: JobFolder

    async def verdict(self, job: Job, ended: JobEnded, digest: str, metrics: Any) -> Verdict:
        """Waits for an engine that is away; one that dies of the version is a refusal."""
        pause, num_failures = self._shop.first_pause, 0
        while True:
            try:
                return await self._ask_gate(job, ended, digest, metrics)
            except (EngineUnavailable, RequestFailed) as error:
                code = error.code
                num_failures += code == "engine_died"
                if num_failures >= MAX_DEATHS or (
                    isinstance(error, RequestFailed) and code not in _TRANSIENT
                ):
                    check = Check(name="generation", passed=False, rule=str(error))
                    return Verdict(checks=(check,), policy=gate_policy(job.wish))
            await asyncio.sleep(pause)
            pause = min(2 * pause, self._shop.last_pause)

    async def _ask_gate(self, job: Job, ended: JobEnded, digest: str, metrics: Any) -> Verdict:
        shop, policy = self._shop, gate_policy(job.wish)
        asker = Asker(client=shop.engine, max_model_len=shop.engine.info.max_model_len)
        scores = await asyncio.to_thread(read_scores, self._folder.run)
        gate = QualityGate(asker=asker, end_tokens=shop.end_tokens, text=shop.text)
        with PreparedDataset.open(self._folder.training) as data:
            return await gate.judge(
                digest,
                data=data,
                metrics=metrics,
                step=ended.step if ended.best_step is None else ended.best_step,
                policy=policy,
                scores=scores,
                baseline=scores.digest if scores else job.start,
                judge=await self._judge_of(policy.judge, asker, view=job.tenant),
                seed=job.wish.seed,
            )

    async def _judge_of(self, name: str | None, asker: Asker, *, view: str) -> Judge | None:
        """The endpoint of the name, or the adapter in a tenant's ``view``; None without either."""
        if name is None:
            return None
        if name in self._shop.judges:
            return HttpJudge(self._shop.judges[name])
        digest = await self._shop.publishing.live(name, view=view)
        return AdapterJudge(asker, self._shop.text, digest) if digest else None
