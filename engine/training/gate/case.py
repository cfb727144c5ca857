"""Everything that a check may look at, and the protocol of checks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..row_scores import VersionScores
from .asker import Answer, Asker
from .judge import Judge
from .policy import GatePolicy
from .sample import Sample
from .text_side import GateText
from .verdict import Check, NotRun

_FEW_TOKENS = 16


@dataclass(slots=True, kw_only=True)
class Case:
    """One version before the gate; what was asked once is not asked again.

    ``digest`` is the candidate's, ``baseline`` that of what it is to replace, None for the base.
    ``metrics`` are the trainer's, up to the version's ``step``.
    """

    digest: str
    baseline: str | None
    policy: GatePolicy
    metrics: Sequence[Mapping[str, Any]]
    step: int
    scores: VersionScores | None
    samples: Sequence[Sample]
    end_tokens: frozenset[int]
    asker: Asker
    text: GateText
    judge: Judge | None = None
    seed: int = 0
    _answers: dict[str | None, list[Answer]] = field(default_factory=dict)

    async def answers(self) -> list[Answer]:
        """The candidate's answers to the samples."""
        return await self._asked(self.digest)

    async def baseline_answers(self) -> list[Answer]:
        return await self._asked(self.baseline)

    def shown(self, answer: Answer | Sample) -> str:
        """An answer as its reader sees it."""
        return self.text.text(answer.tokens if isinstance(answer, Answer) else answer.answer)

    async def _asked(self, digest: str | None) -> list[Answer]:
        if digest not in self._answers:
            longest = max(len(sample.answer) for sample in self.samples)
            self._answers[digest] = await self.asker.answers(
                digest,
                [sample.prompt for sample in self.samples],
                max_tokens=max(_FEW_TOKENS, 2 * longest),
                label="sample",
            )
        return self._answers[digest]


class GateCheck(Protocol):
    """One check; there is a file for each."""

    async def __call__(self, case: Case) -> Sequence[Check | NotRun]:
        """What was found. Missing data is ``NotRun``, never a check that passes."""
        ...
