"""Re-compression is optimal, says what it lost, and depends on the product alone."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multiflora.adapters.merging.delta import Delta, concatenate, zero_delta
from multiflora.adapters.merging.recompress import RankPolicy, recompress, truncate

MakeDelta = Callable[..., Delta]
Measure = Callable[[torch.Tensor, torch.Tensor], float]
EXACT = RankPolicy()


@pytest.mark.parametrize("rank", [1, 5, 8, 12])
def test_the_error_is_that_of_the_dropped_singular_values(
    random_delta: MakeDelta, error: Measure, rank: int
) -> None:
    delta = random_delta(48, 32, 12)
    values = torch.linalg.svdvals(delta.dense().double())
    expected = math.sqrt(float(values[rank:].square().sum() / values.square().sum()))
    result = recompress(delta, RankPolicy(rank=rank))
    assert result.delta.rank == rank
    assert error(result.delta.dense(), delta.dense()) == pytest.approx(expected, abs=1e-3)
    assert result.energy_kept == pytest.approx(1 - expected**2, abs=1e-6)


def test_both_sides_get_the_root_of_the_singular_values(random_delta: MakeDelta) -> None:
    result = recompress(random_delta(48, 32, 12), RankPolicy(rank=6)).delta
    torch.testing.assert_close(result.b.T @ result.b, result.a @ result.a.T, atol=1e-4, rtol=1e-5)


def test_energy_keeps_the_fewest_ranks_that_hold_it(random_delta: MakeDelta) -> None:
    delta = concatenate([random_delta(40, 40, 2).scaled(10), random_delta(40, 40, 6, seed=1)])
    result = recompress(delta, RankPolicy(energy=0.95))
    assert result.energy_kept >= 0.95
    assert recompress(delta, RankPolicy(rank=result.delta.rank - 1)).energy_kept < 0.95


def test_ranks_that_hold_nothing_are_dropped_without_a_loss(
    random_delta: MakeDelta, error: Measure
) -> None:
    delta = random_delta(40, 30, 4)
    twice = concatenate([delta, delta])
    result = recompress(twice, RankPolicy(rank=8))
    assert result.delta.rank == 4
    assert error(result.delta.dense(), twice.dense()) < 1e-6


def test_an_exact_policy_keeps_the_factors_unless_the_matrix_is_smaller(
    random_delta: MakeDelta, error: Measure
) -> None:
    delta = random_delta(40, 30, 4)
    assert recompress(delta, EXACT).delta is delta
    wide = random_delta(8, 6, 20)
    result = recompress(wide, EXACT)
    assert result.delta.rank == 6
    assert error(result.delta.dense(), wide.dense()) < 1e-6


@pytest.mark.parametrize("policy", ["exact", "3", "energy:0.5"])
def test_a_zero_delta_stays_zero(policy: str) -> None:
    zeros = Delta(torch.zeros(6, 2), torch.ones(2, 5))
    for delta in (zero_delta((6, 5)), zeros):
        result = recompress(delta, RankPolicy.parse(policy))
        assert result.energy_kept == 1
        assert not result.delta.dense().any()


@given(seed=st.integers(0, 1000), rank=st.integers(1, 6))
def test_the_result_does_not_depend_on_the_factors(
    random_delta: MakeDelta, error: Measure, seed: int, rank: int
) -> None:
    delta = random_delta(20, 16, 6, seed)
    generator = torch.Generator().manual_seed(seed)
    mix = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0] * 3
    same = Delta(delta.b @ torch.linalg.inv(mix), mix @ delta.a)
    one, other = (recompress(each, RankPolicy(rank=rank)).delta.dense() for each in (delta, same))
    assert error(other, one) < 1e-4


def test_a_dense_matrix_is_truncated_in_the_same_way(
    random_delta: MakeDelta, error: Measure
) -> None:
    delta = random_delta(24, 18, 7)
    thin, dense = (
        recompress(delta, RankPolicy(rank=3)),
        truncate(delta.dense(), RankPolicy(rank=3)),
    )
    assert error(dense.delta.dense(), thin.delta.dense()) < 1e-5
    assert dense.energy_kept == pytest.approx(thin.energy_kept, abs=1e-6)


@pytest.mark.parametrize("text", ["exact", "16", "energy:0.99"])
def test_a_policy_reads_what_it_prints(text: str) -> None:
    assert str(RankPolicy.parse(text)) == text


@pytest.mark.parametrize("text", ["0", "-1", "energy:0", "energy:1.1", "energy:nan", "half", ""])
def test_a_policy_that_makes_no_sense_is_refused_with_the_remedy(text: str) -> None:
    with pytest.raises(ValueError, match=r"give exact, a number, or energy:0\.99"):
        RankPolicy.parse(text)


@pytest.mark.parametrize("decay", [0.0, 0.1], ids=["flat-spectrum", "decaying-spectrum"])
def test_few_ranks_of_a_large_matrix_are_found_without_decomposing_it(
    random_delta: MakeDelta, decay: float
) -> None:
    basis, other = (torch.linalg.qr(random_delta(1100, 1100, 200, i).b)[0] for i in range(2))
    matrix = basis * torch.exp(-decay * torch.arange(200)) @ other.T
    values = torch.exp(-decay * torch.arange(200)).double().square()
    found = truncate(matrix, RankPolicy(rank=16))
    best = float(values[:16].sum() / values.sum())
    assert found.energy_kept == pytest.approx(best, rel=1e-2)
    kept = float(found.delta.dense().double().square().sum() / matrix.double().square().sum())
    assert found.energy_kept == pytest.approx(kept, rel=1e-4)
