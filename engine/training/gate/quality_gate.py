"""The quality gate: what a trained version must show before a name points at it.

Prompts are answered by the serving engine itself; losses are those that the trainer measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..data.dataset import PreparedDataset
from ..row_scores import VersionScores
from .asker import Asker
from .case import Case, GateCheck
from .checks import (
    answer_format,
    divergence,
    end_rate,
    finite,
    length,
    preference,
    probes,
    refusal,
    repetition,
    replay_perplexity,
    validation_loss,
    win_rate,
)
from .judge import Judge
from .policy import GatePolicy
from .sample import draw_samples
from .text_side import GateText
from .verdict import Check, NotRun, Verdict

_CHECKS: Final[Sequence[GateCheck]] = (
    finite.check,
    validation_loss.check,
    replay_perplexity.check,
    divergence.check,
    preference.check,
    end_rate.check,
    repetition.check,
    length.check,
    refusal.check,
    answer_format.check,
    probes.check_suite,
    probes.check_facts,
    win_rate.check,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityGate:
    """Judges versions; answers end at ``end_tokens``, the base's."""

    asker: Asker
    end_tokens: frozenset[int]
    text: GateText

    async def judge(
        self,
        digest: str,
        *,
        data: PreparedDataset,
        metrics: Sequence[Mapping[str, Any]],
        step: int,
        policy: GatePolicy,
        scores: VersionScores | None = None,
        baseline: str | None = None,
        judge: Judge | None = None,
        seed: int = 0,
    ) -> Verdict:
        """The verdict on a stored version that has the factors of ``step``.

        ``baseline`` is the digest of what it is to replace, None for the bare base. Raises what
        ``generate`` raises when the engine is not there or cannot load the version, and
        ``RequestRejected`` for a probe that the chat template refuses.
        """
        samples = draw_samples(
            data, policy.num_prompts, max_model_len=self.asker.max_model_len, seed=seed
        )
        case = Case(
            digest=digest,
            baseline=baseline,
            policy=policy,
            metrics=metrics,
            step=step,
            scores=scores,
            samples=samples,
            end_tokens=self.end_tokens,
            asker=self.asker,
            text=self.text,
            judge=judge,
            seed=seed,
        )
        found = [one for check in _CHECKS for one in await check(case)]
        return Verdict(
            checks=tuple(one for one in found if isinstance(one, Check)),
            not_run=tuple(one for one in found if isinstance(one, NotRun)),
            policy=policy,
            baseline=baseline,
        )
