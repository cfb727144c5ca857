"""Draws follow the distribution that was asked for, and nothing but seed and position."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiflora.engine.active_request import ActiveRequest
from multiflora.engine.draw_plan import uniform
from multiflora.engine.request import GenerationRequest, SamplingParams
from multiflora.engine.sampler import NonFiniteLogits, sample


def make_request(prompt: tuple[int, ...] = (1,), answer: tuple[int, ...] = (), **sampling):
    parameters = SamplingParams(**{"max_tokens": 10, **sampling})
    active = ActiveRequest(GenerationRequest(id="r", prompt=prompt, sampling=parameters), 0)
    active.tokens += answer
    return active


def draw(logits: torch.Tensor, request: ActiveRequest) -> int:
    """The token of one request alone."""
    (drawn,) = sample(logits[None], [request])
    assert drawn.token is not None
    return drawn.token


def distribution(logits: torch.Tensor, count: int = 4000, **sampling: Any) -> dict[int, float]:
    requests = [make_request(seed=seed, **sampling) for seed in range(count)]
    draws = Counter(drawn.token for drawn in sample(logits.expand(count, -1), requests))
    return {token: number / count for token, number in draws.items() if token is not None}


LOGITS = torch.log(torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05]))


def test_greedy_takes_the_best_token() -> None:
    assert draw(torch.tensor([0.0, 3.0, 1.0]), make_request(temperature=0)) == 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_tempered_distribution(temperature: float) -> None:
    wanted = (LOGITS / temperature).softmax(0)
    found = distribution(LOGITS, temperature=temperature)
    for token, probability in enumerate(wanted.tolist()):
        assert found.get(token, 0) == pytest.approx(probability, abs=0.03)


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.39}, {0}),
        ({"top_p": 0.7}, {0, 1}),
        ({"top_p": 0.71}, {0, 1, 2}),
        ({"min_p": 0.3}, {0, 1, 2}),
        ({"min_p": 1.0}, {0}),
        ({"top_k": 3, "top_p": 0.6, "min_p": 0.1}, {0, 1}),
    ],
)
def test_filters_keep_exactly_the_tokens_they_name(sampling: dict, kept: set[int]) -> None:
    assert set(distribution(LOGITS, 600, **sampling)) == kept


def test_filters_equal_those_of_transformers() -> None:
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        logits = 3 * torch.randn(50, generator=generator)
        ids: Any = torch.tensor([[0]])
        scores: Any = TopKLogitsWarper(20)(ids, logits[None])  # type: ignore[arg-type]
        scores = TopPLogitsWarper(0.8)(ids, scores)
        scores = MinPLogitsWarper(0.05)(ids, scores)
        wanted = {index for index, value in enumerate(scores[0]) if torch.isfinite(value)}
        found = distribution(logits, 300, top_k=20, top_p=0.8, min_p=0.05)
        assert set(found) <= wanted


def test_a_wide_nucleus_falls_back_to_the_full_sort() -> None:
    assert len(distribution(torch.zeros(5000), 300, top_p=0.9)) > 250


def test_the_draw_depends_on_seed_and_position_only() -> None:
    logits = torch.zeros(1000)
    one = make_request(prompt=(1, 2, 3), seed=5)
    other = make_request(prompt=(9,), answer=(8, 7), seed=5)
    assert draw(logits, one) == draw(logits, other)
    assert draw(logits, make_request(prompt=(1, 2, 3), seed=6)) != draw(logits, one)
    assert draw(logits, make_request(prompt=(1, 2), seed=5)) != draw(logits, one)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**31))
def test_uniform_numbers_lie_in_the_unit_interval(seed: int, position: int) -> None:
    assert 0 <= uniform(seed, position) < 1


def test_uniform_numbers_are_uniform_along_positions() -> None:
    numbers = torch.tensor([uniform(3, position) for position in range(4000)])
    counts = torch.histc(numbers, bins=10, min=0, max=1)
    assert (counts - 400).abs().max() < 90


@settings(max_examples=30, deadline=None)
@given(
    penalty=st.floats(0.5, 2),
    prompt=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    answer=st.lists(st.integers(0, 9), max_size=6),
)
def test_repetition_penalty_equals_that_of_transformers(
    penalty: float, prompt: list[int], answer: list[int]
) -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits: Any = torch.randn(10, generator=torch.Generator().manual_seed(len(prompt)))
    ids: Any = torch.tensor([prompt + answer])
    scores = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits[None])
    request = make_request(tuple(prompt), tuple(answer), temperature=0, repetition_penalty=penalty)
    assert draw(logits, request) == int(scores[0].argmax())


def test_frequency_and_presence_count_the_answer_only() -> None:
    logits = torch.tensor([1.0, 0.8, 0.5])
    greedy = {"temperature": 0.0}
    assert draw(logits, make_request((0, 0), (), frequency_penalty=1, **greedy)) == 0
    assert draw(logits, make_request((5,), (0,), presence_penalty=0.3, **greedy)) == 1
    assert draw(logits, make_request((5,), (0, 0, 1), frequency_penalty=0.4, **greedy)) == 2


def test_stop_tokens_cannot_be_drawn_before_min_tokens() -> None:
    logits = torch.tensor([5.0, 1.0, 0.0])
    blocked = {"temperature": 0.0, "min_tokens": 2, "stop_token_ids": (0,)}
    assert draw(logits, make_request(**blocked)) == 1
    assert draw(logits, make_request(answer=(1,), **blocked)) == 1
    assert draw(logits, make_request(answer=(1, 1), **blocked)) == 0


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_logits_are_an_error_of_that_request(poison: float) -> None:
    (drawn,) = sample(torch.tensor([[0.0, poison]]), [make_request()])
    assert drawn.token is None
    assert isinstance(drawn.error, NonFiniteLogits)
    assert "request r" in str(drawn.error)


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9}, {"top_k": 3}, {"min_p": 0.5}])
def test_the_smallest_temperature_is_as_good_as_greedy(filters: dict[str, Any]) -> None:
    logits = torch.tensor([1.0, 5.0, 4.9, -3.0])
    for temperature in (1e-310, 1e-30, 1e-6):
        assert draw(logits, make_request(temperature=temperature, **filters)) == 1


def test_the_strongest_penalties_stay_finite() -> None:
    logits = torch.tensor([1e30, 5.0, -1e30])
    request = make_request((0, 2), repetition_penalty=0.01, temperature=1.0, top_p=0.5)
    assert draw(logits, request) == 0
