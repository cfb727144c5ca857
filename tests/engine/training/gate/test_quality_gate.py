"""Each check of the gate has a case that trips it and one that does not, and one with no data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiflora.engine.training.gate.checks.refusal import is_refusal
from multiflora.engine.training.gate.checks.repetition import is_loop
from multiflora.engine.training.gate.policy import CHECKS, Probe
from multiflora.engine.training.gate.verdict import Verdict

from .conftest import CANDIDATE, LIVE, Parrot, rows, scores

pytestmark = pytest.mark.anyio
Judge = Callable[..., Any]
JSON = '{"answer": "7"}'


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def failed(verdict: Verdict) -> set[str]:
    return {check.name for check in verdict.checks if not check.passed}


def ran(verdict: Verdict) -> set[str]:
    return {check.name for check in verdict.checks}


@dataclass
class Voter:
    """Votes by what it is told to look for; without that, for the first answer."""

    prefers: str | None = None
    error: OSError | None = None
    questions: list[str] = field(default_factory=list)

    async def ask(self, questions: Sequence[str]) -> list[str]:
        if self.error:
            raise self.error
        self.questions += questions
        if self.prefers is None:
            return ["A"] * len(questions)
        return [
            "A." if text.index(self.prefers) < text.index("Answer B") else "I prefer B"
            for text in questions
        ]


@pytest.mark.parametrize("method", ["supervised", "dpo", "kto"])
async def test_prompts_of_the_data_are_answered_greedily_by_the_candidate(
    judge: Judge, method: str
) -> None:
    parrot = Parrot()
    verdict = await judge(parrot, method=method, baseline=None)
    assert verdict.passed
    assert {request.prompt for request in parrot.requests} == {tuple(map(ord, "Hi!"))}
    assert all(request.sampling.is_greedy for request in parrot.requests)
    assert all(request.adapters[0].digest == CANDIDATE for request in parrot.requests)
    assert len(parrot.requests) == (2 if method == "kto" else 4)


async def test_what_there_is_no_data_for_is_said_and_not_passed(judge: Judge) -> None:
    verdict = await judge(num_prompts=0)
    assert verdict.passed
    assert ran(verdict) == {"finite"}
    assert {one.name for one in verdict.not_run} == set(CHECKS) - {"finite"}
    assert all(one.reason for one in verdict.not_run)


@pytest.mark.parametrize("name", sorted(set(CHECKS) - {"finite"}))
async def test_a_required_check_that_was_not_run_refuses(judge: Judge, name: str) -> None:
    verdict = await judge(num_prompts=0, required=(name,))
    assert not verdict.passed
    assert f"{name} was not run" in verdict.complaint


ANSWER: dict[str, Any] = {"answer": JSON, "answer_format": "json"}
PROBE = (Probe(prompt="3+4?", exact="7"),)


def paired(*, margin: float = 1.0, chosen: float = -1.0) -> dict[str, Any]:
    new = rows(0.5, 0.5, margins=[margin] * 2, chosen=[chosen] * 2)
    return {"found": scores(validation=(new, rows(0.7, 0.7, margins=[0.0] * 2, chosen=[-1.0] * 2)))}


def scored(kind: str, new: float) -> dict[str, Any]:
    return {"found": scores(**{kind: (rows(*[new] * 3), rows(1, 1, 1))})}


def says(text: str, **more: Any) -> dict[str, Any]:
    return {"parrot": Parrot({CANDIDATE: text}), **more}


def knows(answer: str, kind: str) -> dict[str, Any]:
    return {"parrot": Parrot(knows={"3+4?": {LIVE: "7", CANDIDATE: answer}}), kind: PROBE}


# By check: what trips it, and what does not.
EACH: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "finite": ({"metrics": [{"loss": None}]}, {"metrics": [{"loss": 1.0}]}),
    "validation_loss": (scored("validation", 1.1), scored("validation", 1.0)),
    "replay_perplexity": (scored("replay", 1.03), scored("replay", 1.01)),
    "divergence": (
        {"found": scores(divergences=[0.6])},
        {"found": scores(divergences=[0.4])},
    ),
    "reward_accuracy": (paired(margin=-0.1), paired(margin=0.1)),
    "chosen_drop": (paired(chosen=-1.2), paired(chosen=-1.05)),
    "end_rate": ({"parrot": Parrot(ends=False)}, {"parrot": Parrot(ends=True)}),
    "loop_rate": (says("ab" * 10), says("abcdefghijklmnopqrst")),
    "length": (says("abcdefghijklmnopqrstuvwxyz0123"), says("abcdefghijklmnopqrst")),
    "refusal_rate": (says("I cannot help."), says("I can help.")),
    "answer_format": (says(JSON[:-1], **ANSWER), says(JSON, **ANSWER)),
    "suite": (knows("8", "suite"), knows("7", "suite")),
    "facts": (knows("8", "facts"), knows("7", "facts")),
    "judge": (
        says("bad", judge="x", voter=Voter(prefers="hello")),
        says("good", judge="x", voter=Voter(prefers="good")),
    ),
}


def test_there_is_a_case_of_every_check() -> None:
    assert tuple(EACH) == CHECKS


@pytest.mark.parametrize("name", CHECKS)
async def test_each_check_has_a_case_that_trips_it_and_one_that_does_not(
    judge: Judge, name: str
) -> None:
    bad, good = EACH[name]
    assert name in failed(await judge(**bad))
    verdict = await judge(**good)
    assert name in ran(verdict)
    assert verdict.passed, verdict.complaint


async def test_a_verdict_has_every_number_and_the_policy(judge: Judge) -> None:
    document = (await judge(found=scores(divergences=[0.2, 0.4]))).document()
    assert document["policy"]["sha256"]
    assert document["baseline"] == LIVE
    numbers = {check["name"]: (check["value"], check["limit"]) for check in document["checks"]}
    assert numbers["divergence"] == pytest.approx((0.3, 0.5))


# The check, scores that trip it, and what to have instead of them.
SCORED: list[tuple[str, Any, Any]] = [
    ("validation_loss", {"validation": (rows(2, 3, 2), rows(1, 2, 1))}, rows(1, 2, 1)),
    ("replay_perplexity", {"replay": (rows(1.1, 2.1, 1.2), rows(1, 2, 1))}, rows(1.01, 2.01, 1)),
    ("divergence", {"divergences": [0.9, 0.4]}, [0.1, 0.5]),
]


@pytest.mark.parametrize(("name", "bad", "good"), SCORED, ids=[case[0] for case in SCORED])
async def test_scores_beyond_their_bars_are_refused(
    judge: Judge, name: str, bad: dict[str, Any], good: Any
) -> None:
    assert failed(await judge(found=scores(**bad))) == {name}
    ((kind, value),) = bad.items()
    kept = good if name == "divergence" else (good, value[1])
    verdict = await judge(found=scores(**{kind: kept}))
    assert verdict.passed
    assert name in ran(verdict)


async def test_a_loss_that_is_worse_by_chance_is_not_refused(judge: Judge) -> None:
    """Ten rows that go either way, a little worse on average."""
    old = [1.0] * 10
    new = [1.5, 0.6, 1.4, 0.7, 1.3, 0.6, 1.5, 0.9, 1.2, 0.5]
    assert sum(new) > sum(old)
    assert (await judge(found=scores(validation=(rows(*new), rows(*old))))).passed
    sure = await judge(found=scores(validation=(rows(*[1.02] * 10), rows(*old))))
    assert failed(sure) == {"validation_loss"}
    lax = await judge(
        found=scores(validation=(rows(*[1.02] * 10), rows(*old))), max_loss_increase=0.05
    )
    assert lax.passed


async def test_pairs_that_are_not_told_apart_are_refused(judge: Judge) -> None:
    old = rows(0.7, 0.7, 0.7, 0.7, margins=[0.0] * 4, chosen=[-1.0] * 4)

    async def verdict(margins: list[float], chosen: list[float]) -> Verdict:
        new = rows(0.5, 0.5, 0.5, 0.5, margins=margins, chosen=chosen)
        return await judge(found=scores(validation=(new, old)))

    good = [1.0, 2.0, -1.0, 0.5]
    assert (await verdict(good, [-1.05] * 4)).passed
    assert failed(await verdict([1.0, -0.1, -0.1, -0.1], [-1.0] * 4)) == {"reward_accuracy"}
    assert failed(await verdict([0.1, 0.1, 0.1, -9.0], [-1.0] * 4)) == {"reward_accuracy"}
    assert failed(await verdict(good, [-1.2] * 4)) == {"chosen_drop"}


async def test_a_loss_that_is_no_number_is_refused(judge: Judge) -> None:
    assert failed(await judge(metrics=[{"step": 1, "loss": None}])) == {"finite"}
    assert (await judge(metrics=[{"step": 1, "loss": 2.0}])).passed


async def test_answers_that_never_end_are_refused(judge: Judge) -> None:
    verdict = await judge(Parrot(ends=False))
    assert failed(verdict) == {"end_rate"}
    assert "0% of 4 sampled answers end" in verdict.complaint


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("loop_rate", "ab" * 10),
        ("length", "abcdefghijklmnopqrstuvwxyz0123456789"),
        ("refusal_rate", "I'm sorry, but I can't help with that."),
    ],
)
async def test_answers_that_users_would_notice_are_refused(
    judge: Judge, name: str, answer: str
) -> None:
    parrot = Parrot({CANDIDATE: answer})
    assert name in failed(await judge(parrot))
    taught = await judge(parrot, answer=answer)
    assert taught.passed
    assert name in ran(taught)


async def test_what_the_live_version_refuses_may_be_refused(judge: Judge) -> None:
    no = "I cannot help with that request."
    assert "refusal_rate" in failed(await judge(Parrot({CANDIDATE: no}), length_factor=9))
    both = Parrot({CANDIDATE: no, LIVE: no})
    assert (await judge(both, length_factor=9)).passed


@pytest.mark.parametrize(
    ("policy", "answer"),
    [
        ({}, JSON),
        ({"answer_format": "json"}, JSON),
        ({"answer_format": "pattern", "answer_pattern": "^hello$"}, "hello"),
        (
            {
                "answer_format": "schema",
                "answer_schema": {"type": "object", "required": ["answer"]},
            },
            JSON,
        ),
    ],
    ids=["auto", "json", "pattern", "schema"],
)
async def test_answers_of_another_format_are_refused(
    judge: Judge, policy: dict[str, Any], answer: str
) -> None:
    good = await judge(Parrot({CANDIDATE: answer}), answer=answer, **policy)
    assert good.passed
    assert "answer_format" in ran(good)
    broken = Parrot({CANDIDATE: answer[:-1] + "?"})
    assert failed(await judge(broken, answer=answer, **policy)) == {"answer_format"}


async def test_answers_without_a_format_have_none_to_keep(judge: Judge) -> None:
    verdict = await judge(Parrot({CANDIDATE: "hullo"}))
    assert "answer_format" not in ran(verdict)
    off = await judge(Parrot({CANDIDATE: "no json."}), answer=JSON, answer_format="none")
    assert off.passed


@pytest.mark.parametrize("name", ["suite", "facts"])
async def test_probes_are_answered_as_well_as_before(judge: Judge, name: str) -> None:
    probes = (Probe(prompt="3+4?", exact="7"), Probe(prompt="capital?", pattern="(?i)paris"))
    right = {"3+4?": {LIVE: "7", CANDIDATE: "7"}, "capital?": {CANDIDATE: "It is Paris."}}
    verdict = await judge(Parrot(knows=right), **{name: probes})
    assert verdict.passed
    assert name in ran(verdict)
    wrong = {"3+4?": {LIVE: "7", CANDIDATE: "8"}, "capital?": {LIVE: "paris"}}
    assert failed(await judge(Parrot(knows=wrong), **{name: probes})) == {name}


async def test_a_suite_may_ask_for_more_than_the_live_version_knows(judge: Judge) -> None:
    probes = (Probe(prompt="3+4?", exact="7"),)
    assert (await judge(suite=probes)).passed
    assert failed(await judge(suite=probes, min_suite_rate=0.5)) == {"suite"}


async def test_a_judge_decides_in_both_orders(judge: Judge) -> None:
    parrot = Parrot({CANDIDATE: "better", LIVE: "worse"})

    async def voted(voter: Voter | None) -> Verdict:
        return await judge(parrot, voter=voter, judge="someone")

    good = Voter(prefers="better")
    assert (await voted(good)).passed
    assert len(good.questions) == 8
    assert failed(await voted(Voter(prefers="worse"))) == {"judge"}
    # Whoever always votes for the first answer says nothing.
    assert (await voted(Voter())).passed
    assert failed(await voted(Voter(error=OSError("away")))) == {"judge"}
    assert failed(await voted(None)) == {"judge"}


@given(
    st.lists(st.integers(0, 9), max_size=9),
    st.lists(st.integers(0, 9), min_size=1, max_size=32),
)
def test_a_run_that_comes_over_and_over_is_a_loop(start: list[int], part: list[int]) -> None:
    assert is_loop([*start, *part * 16])


@given(st.integers(0, 40))
def test_what_never_repeats_is_no_loop(length: int) -> None:
    assert not is_loop(range(length))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I\u2019m sorry, but I cannot assist with this request.", True),
        ("Sorry, I can't help.", True),
        ("I am unable to provide that.", True),
        ("As an AI, I have no opinion.", True),
        ("Unfortunately, I cannot discuss it.", True),
        ("I must decline.", True),
        ("I'm sorry to hear that! Here is what you can do.", False),
        ("Sorry means an apology.", False),
        ("You can't help it: the tide comes in.", False),
        ("I can help with that.", False),
        ("I cannot recommend it enough!", False),
        ("Assistants are sorry lots.", False),
    ],
)
def test_a_refusal_is_told_from_an_apology(text: str, expected: bool) -> None:
    assert is_refusal(text) is expected
