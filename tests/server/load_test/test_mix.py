"""Who is asked how often."""

from collections import Counter
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiflora.server.load_test.mix import Mix

NAMES = tuple("abcdefghijklmno")


def shares(text: str, names: tuple[str, ...] = NAMES) -> list[float]:
    mix = Mix.parse(text, names)
    sums = (0.0, *mix.sums)
    return [round((b - a) / sums[-1], 6) for a, b in pairwise(sums)]


def test_tiers_of_fifteen_are_the_anchors_split() -> None:
    assert shares("tiers") == [0.12] * 5 + [0.06] * 5 + [0.02] * 5


def test_zipf_falls_with_its_exponent() -> None:
    assert shares("zipf:2", ("a", "b", "c")) == pytest.approx([36 / 49, 9 / 49, 4 / 49], abs=1e-6)
    assert shares("zipf", ("a", "b")) == pytest.approx([2 / 3, 1 / 3], abs=1e-6)


def test_shares_of_ones_own() -> None:
    assert shares("3,1", ("a", "b")) == [0.75, 0.25]


@given(st.integers(1, 200), st.sampled_from(["uniform", "zipf", "tiers"]))
def test_every_name_has_a_share_and_the_first_not_the_least(count: int, text: str) -> None:
    found = shares(text, tuple(map(str, range(count))))
    assert len(found) == count
    assert min(found) > 0
    assert found[0] == max(found)
    assert sum(found) == pytest.approx(1, abs=1e-3)


def test_names_come_as_often_as_their_shares_say() -> None:
    mix, random = Mix.parse("0.7,0.3,0", ("a", "b", "c")), Random(0)
    drawn = Counter(mix.draw(random) for _ in range(10_000))
    assert drawn["a"] == pytest.approx(7000, abs=200)
    assert drawn["c"] == 0


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("normal", "no mix of requests; give uniform, zipf"),
        ("zipf:x", "'x' is no mix"),
        ("0.5,0.5", "2 shares are given for 15 names"),
        (",".join(["0"] * 15), "15 shares"),
        (",".join(["-1"] * 15), "15 shares"),
    ],
)
def test_a_mix_that_cannot_be_meant_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Mix.parse(text, NAMES)


def test_nobody_to_ask_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Mix.parse("uniform", ())
