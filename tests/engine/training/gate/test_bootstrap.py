"""A bound is below the mean, and covers the truth as often as it says."""

import random
from statistics import NormalDist

import pytest

from multiflora.engine.training.gate.bootstrap import lower_bound


def test_rows_without_spread_leave_no_doubt() -> None:
    assert lower_bound([3.0] * 9, [2.0] * 9, confidence=0.95) == 1.5


def test_the_bound_is_that_of_a_normal_mean() -> None:
    stream = random.Random(1)
    values = [stream.gauss(1, 1) for _ in range(400)]
    mean = sum(values) / 400
    found = lower_bound(values, [1.0] * 400, confidence=0.95)
    assert found == pytest.approx(mean - NormalDist().inv_cdf(0.95) / 20, abs=0.015)


def test_the_same_rows_and_seed_give_the_same_bound() -> None:
    values = [0.1, -0.4, 0.9, 0.3]
    bounds = {lower_bound(values, [1.0] * 4, confidence=0.9, seed=7) for _ in range(3)}
    assert len(bounds) == 1
