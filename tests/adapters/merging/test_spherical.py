"""Arcs and means of directions, against formulas on dense float64 matrices."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.merging.delta import Delta, combine, zero_delta
from multiflora.adapters.merging.gram import Gram
from multiflora.adapters.merging.model_stock import model_stock
from multiflora.adapters.merging.spherical import (
    karcher,
    multi_slerp,
    sequential_slerp,
    slerp,
)

MakeDelta = Callable[..., Delta]
Measure = Callable[[Tensor, Tensor], float]


def slerp_by_projection(one: Tensor, other: Tensor, t: float) -> Tensor:
    """SLERP written down in another way: turn the first direction in the plane of both."""
    unit, target = one / one.norm(), other / other.norm()
    across = target - (unit * target).sum() * unit
    across = across / across.norm()
    angle = torch.atan2((target * across).sum(), (target * unit).sum())
    turned = torch.cos(t * angle) * unit + torch.sin(t * angle) * across
    # The turned direction as a sum of both unit vectors, which then get their own lengths back.
    basis = torch.stack([unit.flatten(), target.flatten()], dim=1)
    shares = torch.linalg.lstsq(basis, turned.flatten()[:, None]).solution.flatten()
    return shares[0] * one + shares[1] * other


@given(seed=st.integers(0, 10_000), t=st.floats(0, 1), scale=st.floats(0.01, 100))
def test_slerp_turns_in_the_plane_of_both_parents(
    random_delta: MakeDelta, error: Measure, seed: int, t: float, scale: float
) -> None:
    one, other = random_delta(12, 10, 3, seed), random_delta(12, 10, 5, seed + 1).scaled(scale)
    found = slerp(Gram([one, other]).inner, t, lerp_antiparallel=False)
    expected = slerp_by_projection(one.dense().double(), other.dense().double(), t)
    assert error(combine([one, other], found.coefficients).dense(), expected) < 1e-5


def test_two_weights_are_a_t_and_keep_the_length_of_equal_parents(random_delta: MakeDelta) -> None:
    one, other = random_delta(40, 40, 2), random_delta(40, 40, 2, seed=1)
    gram = Gram([one.scaled(1 / Gram([one]).norms[0]), other.scaled(1 / Gram([other]).norms[0])])
    by_weights = multi_slerp(gram.inner, [1, 3], lerp_antiparallel=False)
    assert by_weights == slerp(gram.inner, 0.75, lerp_antiparallel=False)
    assert gram.norm_of(by_weights.coefficients) == pytest.approx(1)


def test_parallel_parents_are_interpolated_linearly(random_delta: MakeDelta) -> None:
    one = random_delta(12, 10, 3)
    found = slerp(Gram([one, one.scaled(3)]).inner, 0.25, lerp_antiparallel=False)
    assert found == ([0.75, 0.25], "lerp-parallel")


def test_opposite_parents_need_a_decision(random_delta: MakeDelta) -> None:
    one = random_delta(12, 10, 3)
    inner = Gram([one, one.scaled(-2)]).inner
    with pytest.raises(AdapterRejected, match="opposite directions") as caught:
        slerp(inner, 0.25, lerp_antiparallel=False)
    assert caught.value.code == "antiparallel"
    assert slerp(inner, 0.25, lerp_antiparallel=True).coefficients == [0.75, 0.25]


def test_a_zero_parent_leaves_the_other_with_its_linear_weight(random_delta: MakeDelta) -> None:
    one, zero = random_delta(12, 10, 3), zero_delta((12, 10))
    assert slerp(Gram([one, zero]).inner, 0.3, lerp_antiparallel=False).coefficients[0] == 0.7
    three = Gram([zero, one, zero]).inner
    for rule in (multi_slerp(three, [1, 1, 2], lerp_antiparallel=False), karcher(three, [1, 1, 2])):
        assert rule.coefficients[1] == pytest.approx(0.25)


@given(seed=st.integers(0, 1000), weights=st.lists(st.floats(0.1, 5), min_size=3, max_size=4))
def test_the_karcher_mean_balances_the_pulls_of_all_parents(
    random_delta: MakeDelta, seed: int, weights: list[float]
) -> None:
    deltas = [random_delta(16, 14, 3, seed + i) for i in range(len(weights))]
    gram = Gram(deltas)
    found = karcher(gram.inner, weights)
    mean = combine(deltas, found.coefficients).dense().double()
    lengths = sum(w * n for w, n in zip(weights, gram.norms, strict=True)) / sum(weights)
    assert mean.norm() == pytest.approx(lengths, rel=1e-5)
    mean = mean / mean.norm()
    pull = torch.zeros_like(mean)
    for weight, delta in zip(weights, deltas, strict=True):
        unit = delta.dense().double() / delta.dense().double().norm()
        cos = (unit * mean).sum()
        pull += weight * torch.acos(cos) * (unit - cos * mean) / (1 - cos * cos).sqrt()
    assert pull.norm() < 1e-5


def test_multi_slerp_is_one_step_from_the_linear_mean(
    random_delta: MakeDelta, error: Measure
) -> None:
    deltas = [random_delta(16, 14, 3, seed) for seed in range(3)]
    weights = [0.5, 0.3, 0.2]
    units = [d.dense().double() / d.dense().double().norm() for d in deltas]
    base = torch.stack([w * u for w, u in zip(weights, units, strict=True)]).sum(0)
    base = base / base.norm()
    step = torch.zeros_like(base)
    for weight, unit in zip(weights, units, strict=True):
        cos = (unit * base).sum()
        step += weight * torch.acos(cos) * (unit - cos * base) / (1 - cos * cos).sqrt()
    expected = torch.cos(step.norm()) * base + torch.sin(step.norm()) * step / step.norm()
    gram = Gram(deltas)
    found = multi_slerp(gram.inner, weights, lerp_antiparallel=False).coefficients
    scaled = [d.scaled(1 / n) for d, n in zip(deltas, gram.norms, strict=True)]
    # Coefficients on unit vectors stay as they are on the deltas.
    assert error(combine(scaled, found).dense(), expected) < 1e-5


def test_one_step_is_exact_for_two_directions(random_delta: MakeDelta) -> None:
    deltas = [random_delta(16, 14, 3), random_delta(16, 14, 3, seed=1), zero_delta((16, 14))]
    three = multi_slerp(Gram(deltas).inner, [1, 2, 0], lerp_antiparallel=False).coefficients
    two = slerp(Gram(deltas[:2]).inner, 2 / 3, lerp_antiparallel=False).coefficients
    assert three[:2] == pytest.approx(two)


def test_the_order_shows_in_sequential_slerp_only(random_delta: MakeDelta, error: Measure) -> None:
    deltas = [random_delta(16, 14, 3, seed).scaled(1 + seed) for seed in range(3)]

    def merged(rule: Callable[..., object], order: list[int]) -> Tensor:
        chosen = [deltas[i] for i in order]
        found = rule(Gram(chosen).inner, [1, 1, 1], lerp_antiparallel=False)
        return combine(chosen, found.coefficients).dense()  # type: ignore[attr-defined]

    assert error(merged(multi_slerp, [2, 0, 1]), merged(multi_slerp, [0, 1, 2])) < 1e-6
    assert error(merged(sequential_slerp, [2, 0, 1]), merged(sequential_slerp, [0, 1, 2])) > 0.01


def test_sequential_slerp_folds_from_the_left(random_delta: MakeDelta, error: Measure) -> None:
    deltas = [random_delta(16, 14, 3, seed) for seed in range(3)]
    found = sequential_slerp(Gram(deltas).inner, [1, 1, 2], lerp_antiparallel=False)
    one, two, three = (delta.dense().double() for delta in deltas)
    expected = slerp_by_projection(slerp_by_projection(one, two, 0.5), three, 0.5)
    assert error(combine(deltas, found.coefficients).dense(), expected) < 1e-5


def test_directions_that_cancel_have_no_mean(random_delta: MakeDelta) -> None:
    one, two = random_delta(12, 10, 3), random_delta(12, 10, 3, seed=1)
    inner = Gram([one, two, one.scaled(-1), two.scaled(-1)]).inner
    with pytest.raises(AdapterRejected, match="opposite"):
        multi_slerp(inner, [1, 1, 1, 1], lerp_antiparallel=False)
    with pytest.raises(AdapterRejected, match="opposite"):
        karcher(inner, [1, 1, 1, 1])
    assert multi_slerp(inner, [1, 1, 1, 1], lerp_antiparallel=True).branch == "lerp-antiparallel"


def test_model_stock_follows_the_mean_cosine() -> None:
    cos = 0.5
    inner = torch.full((3, 3), cos, dtype=torch.float64).fill_diagonal_(1)
    t = 3 * cos / (1 + 2 * cos)
    assert model_stock(inner).coefficients == pytest.approx([t / 3] * 3)
    assert model_stock(torch.ones(2, 2).double()).coefficients == pytest.approx([0.5, 0.5])
    assert model_stock(torch.ones(1, 1).double()).coefficients == [1.0]


@pytest.mark.parametrize("cos", [0.0, -0.4])
def test_model_stock_of_strangers_is_the_base(cos: float) -> None:
    inner = torch.tensor([[1.0, cos], [cos, 1.0]]).double()
    assert model_stock(inner).coefficients == [0, 0]


def test_angles_and_overlaps_are_those_of_the_dense_matrices(random_delta: MakeDelta) -> None:
    one, other = random_delta(16, 14, 3), random_delta(16, 14, 5, seed=1)
    gram = Gram([one, other, zero_delta((16, 14))])
    left, right = one.dense().double(), other.dense().double()
    expected = float((left * right).sum() / left.norm() / right.norm())
    assert gram.cosine(0, 1) == pytest.approx(expected, rel=1e-6)
    q_left, q_right = torch.linalg.qr(one.b.double())[0], torch.linalg.qr(other.b.double())[0]
    angles = torch.linalg.svdvals(q_left.T @ q_right)
    assert gram.overlap(0, 1) == pytest.approx(float(angles.square().mean()), rel=1e-6)
    q_left, q_right = torch.linalg.qr(one.a.T.double())[0], torch.linalg.qr(other.a.T.double())[0]
    angles = torch.linalg.svdvals(q_left.T @ q_right)
    assert gram.input_overlap(0, 1) == pytest.approx(float(angles.square().mean()), rel=1e-6)
    assert gram.overlap(0, 0) == pytest.approx(1)
    assert gram.cosine(0, 2) == gram.overlap(0, 2) == 0
    assert math.isclose(gram.norms[0], float(left.norm()), rel_tol=1e-6)
