"""Bias, bans and masks decide what may be drawn, row by row."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multiflora.engine.active_request import ActiveRequest
from multiflora.engine.request import GenerationRequest, SamplingParams
from multiflora.engine.sampler import NothingLeft, sample

FILTERS = [{"temperature": 0.0}, {}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}]


def make_request(*, answer: tuple[int, ...] = (), **sampling: Any) -> ActiveRequest:
    parameters = SamplingParams(**{"max_tokens": 10, **sampling})
    active = ActiveRequest(GenerationRequest(id="r", prompt=(1, 2), sampling=parameters), 0)
    active.tokens += answer
    return active


def draw(logits: torch.Tensor, *requests: ActiveRequest) -> list[int | None]:
    return [drawn.token for drawn in sample(logits, requests)]


@given(
    vocab_size=st.sampled_from([5, 32, 33, 70, 1100]),
    data=st.data(),
    filters=st.sampled_from(FILTERS),
)
def test_only_allowed_tokens_are_drawn(vocab_size: int, data: Any, filters: dict[str, Any]) -> None:
    ids = st.integers(0, vocab_size - 1)
    allowed = data.draw(st.lists(ids, min_size=1, max_size=4).map(tuple))
    requests = [
        make_request(allowed_token_ids=allowed if seed % 2 else (), seed=seed, **filters)
        for seed in range(8)
    ]
    logits = 9 * torch.randn(8, vocab_size, generator=torch.Generator().manual_seed(vocab_size))
    drawn = draw(logits, *requests)
    assert set(drawn[1::2]) <= set(allowed)
    free = [make_request(seed=seed, **filters) for seed in range(8)]
    assert drawn[::2] == draw(logits, *free)[::2]


@pytest.mark.parametrize("filters", FILTERS)
def test_a_bias_decides(filters: dict[str, Any]) -> None:
    request = make_request(logit_bias=((3, 100.0), (0, -100.0)), **filters)
    assert draw(torch.zeros(1, 9), request) == [3]


@pytest.mark.parametrize(
    ("answer", "token"), [((), 0), ((5,), 0), ((5, 6), 1), ((6, 5), 0), ((5, 6, 1), 0)]
)
def test_a_bad_word_is_not_completed(answer: tuple[int, ...], token: int) -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
    request = make_request(answer=answer, bad_words=((5, 6, 0),), temperature=0.0)
    assert draw(logits, request) == [token]


def test_a_bad_word_of_one_token_never_comes() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0]])
    assert draw(logits, make_request(bad_words=((0,),), temperature=0.0)) == [1]


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize(
    "settings",
    [
        {"allowed_token_ids": (2,), "bad_words": ((2,),)},
        {"allowed_token_ids": (2,), "min_tokens": 5, "stop_token_ids": (2,)},
    ],
)
def test_settings_that_leave_nothing_fail_alone(
    settings: dict[str, Any], filters: dict[str, Any]
) -> None:
    logits = torch.zeros(2, 2000)
    empty, other = sample(logits, [make_request(**settings, **filters), make_request()])
    assert isinstance(empty.error, NothingLeft)
    assert empty.token is None
    assert other.token is not None
