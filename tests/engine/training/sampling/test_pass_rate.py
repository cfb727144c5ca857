"""pass@k is the chance that it claims to be."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiflora.engine.training.sampling.pass_rate import pass_at, pass_rates


@given(passed=st.lists(st.booleans(), min_size=1, max_size=8), k=st.integers(1, 8))
def test_it_is_the_share_of_draws_in_which_one_passes(passed: list[bool], k: int) -> None:
    k = min(k, len(passed))
    draws = [any(draw) for draw in combinations(passed, k)]
    expected = sum(draws) / len(draws)
    assert pass_at(len(passed), sum(passed), k) == pytest.approx(expected)


def test_rates_are_of_powers_of_two_and_of_all() -> None:
    assert list(pass_rates([0], 6)) == ["pass@1", "pass@2", "pass@4", "pass@6"]
    assert pass_rates([8, 0], 8) == {f"pass@{k}": 0.5 for k in (1, 2, 4, 8)}
    assert pass_rates([4], 8)["pass@1"] == 0.5
    assert pass_rates([], 1) == {"pass@1": 0.0}


@pytest.mark.parametrize(("drawn", "passed", "k"), [(4, 5, 1), (4, 1, 5), (4, 1, 0), (4, -1, 1)])
def test_what_is_not_defined_is_refused(drawn: int, passed: int, k: int) -> None:
    with pytest.raises(ValueError, match="not defined"):
        pass_at(drawn, passed, k)
