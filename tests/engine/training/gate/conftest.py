"""Versions that say what they are told to, in a vocabulary of words."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from multiflora.engine.request import FinishReason, GenerationRequest, TokenEvent
from multiflora.engine.training.data.config import DataConfig
from multiflora.engine.training.data.dataset import DatasetWriter, PreparedDataset
from multiflora.engine.training.data.report import Report
from multiflora.engine.training.example import Example, Item, Preference, Rating
from multiflora.engine.training.gate.asker import Asker
from multiflora.engine.training.gate.judge import Judge
from multiflora.engine.training.gate.policy import GatePolicy
from multiflora.engine.training.gate.quality_gate import QualityGate
from multiflora.engine.training.gate.verdict import Verdict
from multiflora.engine.training.row_scores import RowScores, ScoredRows, VersionScores

END = 2
CANDIDATE, LIVE = "c" * 64, "1" * 64


@dataclass
class WordText:
    """A token per letter, above the end token; the question is the prompt."""

    def prompt(self, question: str) -> list[int]:
        return [ord(letter) for letter in question]

    def text(self, tokens: Sequence[int]) -> str:
        return "".join(chr(token) for token in tokens if token != END).strip()


@dataclass
class Parrot:
    """Answers with ``says`` of the version's digest, or of the prompt; then stops or is cut."""

    says: Mapping[str | None, str] = field(default_factory=dict)
    knows: Mapping[str, Mapping[Any, str]] = field(default_factory=dict)
    ends: bool = True
    requests: list[GenerationRequest] = field(default_factory=list)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent]:
        self.requests.append(request)
        digest = request.adapters[0].digest if request.adapters else None
        asked = WordText().text(request.prompt)
        says = self.knows.get(asked, self.says).get(digest, "hello")
        reason = FinishReason.STOP if self.ends else FinishReason.LENGTH
        yield TokenEvent(request_id=request.id, tokens=tuple(map(ord, says)), finish_reason=reason)


def row(method: str, line: int, answer: str) -> Item:
    asked, given = tuple(map(ord, "Hi!")), (*map(ord, answer), END)
    match method:
        case "dpo":
            return Preference(asked, given, (9, END), line)
        case "kto":
            return Rating(asked, given, line % 2 == 1, line)
        case _:
            return Example(asked + given, (0.0,) * len(asked) + (1.0,) * len(given), line)


def rows(*losses: float, **more: Sequence[float]) -> RowScores:
    """Every row counts ten tokens."""
    others = {name: tuple(values) for name, values in more.items()}
    weights = (10.0,) * len(losses)
    return RowScores(losses=tuple(10 * loss for loss in losses), weights=weights, **others)


def scores(**found: Any) -> VersionScores:
    """``validation`` and ``replay`` are pairs: candidate, baseline."""
    made: dict[str, Any] = {
        name: ScoredRows(candidate=value[0], baseline=value[1])
        for name, value in found.items()
        if name != "divergences"
    }
    return VersionScores(baseline="live", divergences=tuple(found.get("divergences", ())), **made)


@pytest.fixture
def judge(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """``await judge(parrot, scores=..., answer=..., **policy)``: the verdict on the candidate."""

    async def run(
        parrot: Parrot | None = None,
        *,
        found: VersionScores | None = None,
        metrics: Sequence[Mapping[str, Any]] = (),
        method: Any = "supervised",
        answer: str = "hello",
        baseline: str | None = LIVE,
        voter: Judge | None = None,
        **policy: Any,
    ) -> Verdict:
        folder = tmp_path_factory.mktemp("gate") / "rows"
        write(folder, method, answer)
        gate = QualityGate(
            asker=Asker(client=parrot or Parrot(), max_model_len=600),
            end_tokens=frozenset({END}),
            text=WordText(),
        )
        with PreparedDataset.open(folder) as data:
            return await gate.judge(
                *(CANDIDATE,),
                data=data,
                metrics=metrics,
                step=9,
                policy=GatePolicy(**policy),
                scores=found,
                baseline=baseline,
                judge=voter,
            )

    return run


def write(folder: Path, method: Any, answer: str) -> None:
    with DatasetWriter(folder, DataConfig(method=method)) as writer:
        for line in range(1, 5):
            writer.add(row(method, line, answer))
        writer.finish(Report(format="test"), fingerprint="")
