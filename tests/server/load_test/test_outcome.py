"""Figures of outcomes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiflora.server.load_test.outcome import Outcome, by_name, figures, quantiles

GOOD = Outcome(
    name="a",
    seconds=0.5,
    first_token=0.2,
    gaps=(0.1, 0.2),
    num_tokens=4,
    num_prompt_tokens=10,
)
BAD = Outcome(name="b", seconds=0.1, first_token=0.05, num_tokens=1, error="429 queue_full")


def test_failed_requests_count_as_failed_only() -> None:
    found = figures([GOOD, BAD, BAD], 2.0)
    assert (found["requests"], found["failed"]) == (3, 2)
    assert found["errors"] == {"429 queue_full": 2}
    assert (found["tokens"], found["tokens_per_second"], found["prompt_tokens"]) == (4, 2.0, 10)
    assert found["first_token_ms"] == {"p50": 200.0, "p99": 200.0, "max": 200.0}
    assert found["inter_token_ms"] == {"p50": 150.0, "p99": 200.0, "max": 200.0}
    assert found["per_token_ms"]["p50"] == 100.0


def test_figures_of_nothing_but_failures_have_no_times() -> None:
    found = figures([BAD], 1.0)
    assert found["first_token_ms"] is None
    assert found["tokens_per_second"] == 0


def test_names_are_apart_and_the_busiest_first() -> None:
    found = by_name([GOOD, BAD, BAD], 1.0)
    assert list(found) == ["b", "a"]
    assert found["a"]["failed"] == 0


@given(st.lists(st.floats(0, 100), min_size=1, max_size=300))
def test_no_more_than_one_in_a_hundred_is_above_p99(seconds: list[float]) -> None:
    found = quantiles(seconds)
    assert found is not None
    assert found["p50"] <= found["p99"] <= found["max"]
    above = sum(round(1e3 * value, 3) > found["p99"] for value in seconds)
    assert above <= len(seconds) / 100
    assert sum(round(1e3 * value, 3) >= found["p99"] for value in seconds) > len(seconds) / 100


def test_quantiles_of_nothing_are_none() -> None:
    assert quantiles([]) is None


@pytest.mark.parametrize(("tokens", "expected"), [(1, None), (2, 0.3), (4, 0.1)])
def test_time_per_token_is_of_those_after_the_first(tokens: int, expected: float | None) -> None:
    outcome = Outcome(name="a", seconds=1.0, gaps=(0.1, 0.2), num_tokens=tokens)
    assert outcome.per_token == pytest.approx(expected)
