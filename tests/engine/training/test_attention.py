"""Grouped attention against the definition, one query at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from multiflora.engine.training.attention import attend, plan_attention
from multiflora.engine.training.packed_batch import Span

CPU = torch.device("cpu")
HEADS, KV_HEADS, SIZE, SCALE = 4, 2, 8, 0.3


def lay_out(lengths: list[tuple[int, int]]) -> list[Span]:
    """Sequences of these lengths; one with a second length has another completion after it, which
    sees its first half."""
    spans: list[Span] = []
    start = 0
    for length, other in lengths:
        spans.append(Span(start, start + length))
        if other:
            shared = (start, start + (length + 1) // 2)
            spans.append(Span(start + length, start + length + other, shared))
        start += length + other
    return spans


def naive(q: Tensor, k: Tensor, v: Tensor, spans: list[Span], window: int | None) -> Tensor:
    out = torch.empty_like(q)
    for span in spans:
        rows = [*range(*span.prefix), *range(span.start, span.stop)]
        for place in range(span.first_position, len(rows)):
            first = 0 if window is None else max(0, place - window + 1)
            seen = rows[first : place + 1]
            keys = k[seen].repeat_interleave(HEADS // KV_HEADS, dim=1)
            values = v[seen].repeat_interleave(HEADS // KV_HEADS, dim=1)
            scores = torch.einsum("hd,khd->hk", q[rows[place]], keys) * SCALE
            out[rows[place]] = torch.einsum("hk,khd->hd", scores.softmax(-1), values)
    return out


def inputs(num_rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_rows)

    def draw(heads: int) -> Tensor:
        return torch.randn(num_rows, heads, SIZE, generator=generator, dtype=torch.float64)

    return draw(HEADS), draw(KV_HEADS), draw(KV_HEADS), draw(HEADS)


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(0, 6)), min_size=1, max_size=5),
    st.sampled_from([None, 3, 9]),
)
def test_rows_see_their_own_sequence_and_give_its_gradients(
    lengths: list[tuple[int, int]], window: int | None
) -> None:
    spans = lay_out(lengths)
    *tensors, dy = inputs(spans[-1].stop)
    plan = plan_attention(spans, window, CPU)
    results = []
    for function in (
        lambda q, k, v: attend(q, k, v, plan, SCALE),
        lambda q, k, v: naive(q, k, v, spans, window),
    ):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        y = function(*leaves)
        results.append((y.detach(), *torch.autograd.grad(y, leaves, dy)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("lengths", "num_calls"),
    [([20, 30, 64, 5], 1), ([100, 110, 125, 126], 2), ([3000, 60], 2), ([500], 1)],
)
def test_sequences_of_about_one_length_share_a_call(lengths: list[int], num_calls: int) -> None:
    plan = plan_attention(lay_out([(length, 0) for length in lengths]), None, CPU)
    assert len(plan.groups) == num_calls


def test_sequences_of_one_length_are_not_moved() -> None:
    plan = plan_attention(lay_out([(70, 0), (70, 0)]), None, CPU)
    assert plan.queries is None
    assert plan.keys is None
