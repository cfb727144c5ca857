"""What each element-wise rule keeps and how it joins, on numbers small enough to follow."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from multiflora.adapters.merging.element_wise import keep_largest, merge_entries

ROW = torch.tensor([[5.0, -4.0, 3.0, -2.0, 1.0, 0.5, 0.0, -6.0]])


def merged(
    parents: list[Tensor], drop: str, join: str = "sum", weights: Any = None, **settings: Any
) -> Tensor:
    all_settings: Mapping[str, Any] = {"density": 1.0, "gamma": 0.0, "epsilon": 0.0, **settings}
    return merge_entries(
        parents,
        weights or [1.0] * len(parents),
        drop=drop,
        join=join,
        settings=all_settings,
        path="some.module",
    )


def test_ties_elects_by_weighted_sum_and_averages_those_that_agree() -> None:
    one, other = torch.tensor([[3.0, -1.0, 2.0, 1.0]]), torch.tensor([[1.0, 4.0, -2.0, 0.0]])
    found = merged([one, other], "magnitude", "elect")
    assert found.tolist() == [[2.0, 4.0, 0.0, 1.0]]
    heavier = merged([one, other], "magnitude", "elect", weights=[5.0, 1.0])
    assert heavier.tolist() == [[8.0, -5.0, 10.0, 5.0]]


def test_the_largest_entries_stay_and_of_equal_ones_the_first() -> None:
    assert keep_largest(ROW, 3 / 8).tolist() == [[5, -4, 0, 0, 0, 0, 0, -6]]
    assert keep_largest(torch.ones(2, 2), 0.5).tolist() == [[1, 1], [0, 0]]
    assert not keep_largest(ROW, 0.01).any()
    assert torch.equal(keep_largest(ROW, 1.0), ROW)


def test_breadcrumbs_drop_both_tails() -> None:
    found = merged([ROW], "breadcrumbs", density=0.5, gamma=0.25)
    assert found.tolist() == [[0, -4, 3, -2, 1, 0, 0, 0]]


def test_breadcrumbs_without_a_top_keep_the_largest() -> None:
    found = merged([ROW], "breadcrumbs", density=0.5, gamma=0.0)
    assert torch.equal(found, keep_largest(ROW, 0.5))
    assert torch.equal(merged([ROW], "breadcrumbs"), ROW)


@pytest.mark.parametrize("drop", ["dare", "della"])
def test_random_drops_keep_the_expected_value(drop: str) -> None:
    ones = torch.ones(400, 400)
    found = merged([ones], drop, density=0.3, epsilon=0.2)
    assert found.mean() == pytest.approx(1, abs=0.02)
    assert (found != 0).float().mean() == pytest.approx(0.3, abs=0.01)


def test_dare_scales_what_stays_and_draws_for_each_parent_alone() -> None:
    found = merged([ROW.expand(50, 8)], "dare", density=0.5)
    assert set((found / ROW).nan_to_num().unique().tolist()) == {0.0, 2.0}
    both = merged([torch.ones(50, 8)] * 2, "dare", density=0.5)
    assert set(both.unique().tolist()) == {0.0, 2.0, 4.0}


def test_della_keeps_large_entries_more_often() -> None:
    rows = torch.linspace(1, 2, 200).expand(2000, 200)
    found = merged([rows], "della", density=0.5, epsilon=0.6)
    kept = (found != 0).float().mean(dim=0)
    assert kept[:20].mean() == pytest.approx(0.22, abs=0.04)
    assert kept[-20:].mean() == pytest.approx(0.78, abs=0.04)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 0.99])
def test_della_with_density_one_drops_nothing(epsilon: float) -> None:
    torch.testing.assert_close(merged([ROW], "della", epsilon=epsilon), ROW)


@given(seed=st.integers(0, 99), density=st.floats(0.05, 1))
def test_a_rule_does_not_see_signs(seed: int, density: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    parents = [torch.randn(6, 9, generator=generator) for _ in range(3)]
    for drop in ("magnitude", "dare", "della", "breadcrumbs"):
        for join in ("sum", "elect"):
            settings = {"density": density, "gamma": 0.1, "epsilon": 0.1, "seed": seed}
            found = merged(parents, drop, join, **settings)
            flipped = merged([-parent for parent in parents], drop, join, **settings)
            assert torch.equal(found, -flipped)
