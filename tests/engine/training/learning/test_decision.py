"""Decisions about canaries follow from the counts alone, and no way but from good to live."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiflora.engine.training.feedback.completion import Opinion
from multiflora.engine.training.learning.decision import Decision, decide
from multiflora.engine.training.learning.policy import CanaryPolicy
from multiflora.engine.training.learning.traffic import Arm, Outcome, Traffic

POLICY = CanaryPolicy(min_requests=50, max_seconds=1000)
NOBODY = Opinion()


def arm(
    num: int = 100,
    *,
    errors: int = 0,
    tokens: int = 20,
    first: float = 0.1,
    inter: float = 0.01,
    seed: int = 0,
) -> Arm:
    """Requests whose measurements vary by a fifth."""
    draw = random.Random(seed)
    found = Arm()
    for number in range(num):
        noise = draw.uniform(0.9, 1.1)
        outcome = Outcome(
            num_tokens=int(tokens * noise), first_token=first * noise, inter_token=inter * noise
        )
        found = found.plus(Outcome(is_error=True) if number < errors else outcome)
    return found


def judge(
    canary: Arm,
    live: Arm | None = None,
    *,
    said: tuple[Opinion, Opinion] = (NOBODY, NOBODY),
    policy: CanaryPolicy = POLICY,
    age: float = 10,
) -> Decision:
    return decide(Traffic(live or arm(), canary), *said, policy=policy, age_seconds=age)


def broken(decision: Decision) -> set[str]:
    return {one.name for one in decision.comparisons if one.is_broken}


def test_a_canary_that_is_as_good_is_promoted_once_there_is_enough() -> None:
    assert judge(arm(49, seed=1)).action == "wait"
    decision = judge(arm(50, seed=1))
    assert decision.action == "promote"
    assert all(one["kept"] for one in decision.document()["comparisons"])


@pytest.mark.parametrize(
    ("canary", "name"),
    [
        (arm(errors=20), "error_rate"),
        (arm(tokens=80), "length"),
        (arm(tokens=5), "length"),
        (arm(first=0.3), "first_token_seconds"),
        (arm(inter=0.03), "inter_token_seconds"),
    ],
)
def test_what_is_worse_beyond_doubt_is_rolled_back_at_once(canary: Arm, name: str) -> None:
    decision = judge(canary)
    assert decision.action == "roll_back"
    assert broken(decision) == {name}
    assert name in decision.reason


def test_what_users_do_not_like_is_rolled_back() -> None:
    liked, disliked = Opinion(40, 2), Opinion(4, 30)
    assert broken(judge(arm(), said=(liked, disliked))) == {"dislike_rate"}
    assert judge(arm(), said=(disliked, liked)).action == "promote"
    assert judge(arm(), said=(liked, liked)).action == "promote"


def test_few_errors_are_no_proof_but_no_reason_to_promote_either() -> None:
    canary = arm(60, errors=2)
    assert judge(canary).action == "wait"
    assert judge(canary, age=1000).action == "roll_back"
    assert "in time" in judge(canary, age=1000).reason


def test_too_few_requests_end_in_the_live_version() -> None:
    decision = judge(arm(10), age=1000)
    assert decision.action == "roll_back"
    assert "fewer than 50 requests" in decision.reason


@pytest.mark.parametrize("num", [2, 3, 5])
def test_a_few_answers_that_are_equal_prove_nothing(num: int) -> None:
    def equal(tokens: int, num: int) -> Arm:
        made = Arm()
        for _ in range(num):
            made = made.plus(Outcome(num_tokens=tokens, first_token=0.1, inter_token=0.01))
        return made

    assert judge(equal(60, num), equal(20, num)).action == "wait"
    assert judge(equal(60, 100), equal(20, 100)).action == "roll_back"


def test_a_bar_lies_where_the_policy_has_it() -> None:
    strict = replace(POLICY, length_factor=1.0)
    assert judge(arm(tokens=40), policy=strict).action == "roll_back"
    assert judge(arm(tokens=40), policy=replace(POLICY, length_factor=3.0)).action == "promote"


def test_newcombe_s_interval_has_the_published_bounds() -> None:
    """56/70 against 48/80: 0.0524 to 0.3339 at 95 % (Newcombe 1998, table II, method 10)."""
    policy = replace(POLICY, confidence=0.975, max_error_increase=1.0)
    canary, live = Arm(num_requests=70, num_errors=56), Arm(num_requests=80, num_errors=48)
    rates = judge(canary, live, policy=policy).comparisons[0]
    assert rates.value == pytest.approx(0.2)
    assert rates.bound == pytest.approx(0.0524, abs=1e-4)


ARMS = st.builds(
    arm,
    st.integers(0, 80),
    errors=st.integers(0, 80),
    tokens=st.integers(0, 200),
    first=st.floats(1e-4, 10),
    seed=st.integers(0, 3),
)
OPINIONS = st.builds(Opinion, st.integers(0, 50), st.integers(0, 50))


@given(canary=ARMS, live=ARMS, said=st.tuples(OPINIONS, OPINIONS), age=st.floats(0, 2000))
def test_every_window_ends_and_never_in_a_promotion_that_breaks_a_bar(
    canary: Arm, live: Arm, said: tuple[Opinion, Opinion], age: float
) -> None:
    decision = judge(canary, live, said=said, age=age)
    if decision.action == "promote":
        assert min(canary.num_requests, live.num_requests) >= POLICY.min_requests
        assert all(one.is_kept and not one.is_broken for one in decision.comparisons)
    if age >= POLICY.max_seconds:
        assert decision.action != "wait"
    for one in decision.comparisons:
        if one.bound is not None and one.value is not None:
            assert one.bound <= one.value + 1e-9


@given(canary=ARMS, said=OPINIONS)
def test_a_version_is_never_worse_than_itself(canary: Arm, said: Opinion) -> None:
    decision = judge(canary, canary, said=(said, said))
    assert decision.action == ("promote" if canary.num_requests >= 50 else "wait")


@given(canary=ARMS, live=ARMS, more=st.integers(1, 50))
def test_errors_of_the_canary_never_help_it(canary: Arm, live: Arm, more: int) -> None:
    rank = {"roll_back": 0, "wait": 1, "promote": 2}
    worse = replace(canary, num_errors=min(canary.num_requests, canary.num_errors + more))
    assert rank[judge(worse, live).action] <= rank[judge(canary, live).action]
