"""The gate refuses what users would notice, and nothing else."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiflora.engine.request import FinishReason, GenerationRequest, TokenEvent
from multiflora.engine.training.data.config import DataConfig
from multiflora.engine.training.data.dataset import PreparedDataset
from multiflora.engine.training.jobs.gate_settings import GateSettings
from multiflora.engine.training.jobs.quality_gate import QualityGate, Verdict, is_loop

from .conftest import END, write_dataset

pytestmark = pytest.mark.anyio


@dataclass
class Parrot:
    """Says ``tokens``, and then stops or is cut."""

    tokens: tuple[int, ...] = (7, 8)
    ends: bool = True
    requests: list[GenerationRequest] = field(default_factory=list)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent]:
        self.requests.append(request)
        reason = FinishReason.STOP if self.ends else FinishReason.LENGTH
        yield TokenEvent(request_id=request.id, tokens=self.tokens, finish_reason=reason)


async def judge(
    folder: Path,
    parrot: Parrot,
    *,
    metrics: Sequence[Mapping[str, Any]] = (),
    method: Any = "supervised",
    **settings: Any,
) -> Verdict:
    write_dataset(folder / "rows", DataConfig(method=method))
    gate = QualityGate(parrot, end_tokens=frozenset({END}), max_model_len=64)
    with PreparedDataset.open(folder / "rows") as data:
        return await gate.judge(
            "d" * 64, data=data, metrics=metrics, step=9, settings=GateSettings(**settings)
        )


def failed(verdict: Verdict) -> set[str]:
    return {check.name for check in verdict.checks if not check.passed}


@pytest.mark.parametrize("method", ["supervised", "dpo"])
async def test_prompts_of_the_data_are_answered_greedily_by_the_candidate(
    tmp_path: Path, method: str
) -> None:
    parrot = Parrot()
    assert (await judge(tmp_path, parrot, method=method)).passed
    assert {request.prompt for request in parrot.requests} == {(4, 5)}
    assert all(request.sampling.is_greedy for request in parrot.requests)
    assert all(request.adapters[0].digest == "d" * 64 for request in parrot.requests)


async def test_answers_that_never_end_are_refused(tmp_path: Path) -> None:
    verdict = await judge(tmp_path, Parrot(ends=False))
    assert failed(verdict) == {"end_rate"}
    assert "0% of 2 sampled answers end" in verdict.complaint


async def test_answers_that_loop_are_refused(tmp_path: Path) -> None:
    assert "loop_rate" in failed(await judge(tmp_path, Parrot(tokens=(7, 8) * 8)))


async def test_answers_of_another_length_are_refused(tmp_path: Path) -> None:
    assert failed(await judge(tmp_path, Parrot(tokens=tuple(range(3, 53))))) == {"length"}


async def test_a_loss_above_the_first_is_refused(tmp_path: Path) -> None:
    metrics = [{"step": 1, "eval_loss": 1.0}, {"step": 9, "eval_loss": 1.1}]
    assert failed(await judge(tmp_path, Parrot(), metrics=metrics)) == {"validation_loss"}
    lax = await judge(tmp_path / "lax", Parrot(), metrics=metrics, max_loss_increase=0.2)
    assert lax.passed


async def test_a_loss_that_is_no_number_is_refused(tmp_path: Path) -> None:
    metrics = [{"step": 1, "loss": None}]
    assert failed(await judge(tmp_path, Parrot(), metrics=metrics)) == {"finite"}


@given(
    st.lists(st.integers(0, 9), max_size=9),
    st.lists(st.integers(0, 9), min_size=1, max_size=32),
)
def test_a_run_that_comes_over_and_over_is_a_loop(start: list[int], part: list[int]) -> None:
    assert is_loop([*start, *part * 16])


@given(st.integers(0, 40))
def test_what_never_repeats_is_no_loop(length: int) -> None:
    assert not is_loop(range(length))
