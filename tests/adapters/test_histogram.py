"""Counting by size loses no value and puts each under the smallest bound that holds it."""

from hypothesis import given
from hypothesis import strategies as st

from multiflora.adapters.histogram import WAIT_SECONDS, Distribution, Histogram


@given(st.lists(st.tuples(st.floats(0, 200), st.integers(1, 5))))
def test_every_value_is_counted_at_its_bound(values: list[tuple[float, int]]) -> None:
    histogram = Histogram(WAIT_SECONDS)
    for value, count in values:
        histogram.observe(value, count)
    found = histogram.snapshot()
    assert found.num_values == sum(count for _, count in values)
    for place, bound in enumerate(WAIT_SECONDS):
        at_most = sum(count for value, count in values if value <= bound)
        assert sum(found.counts[: place + 1]) == at_most


def test_a_snapshot_stays_as_it_is() -> None:
    histogram = Histogram((1.0,))
    before = histogram.snapshot()
    histogram.observe(1.0)
    histogram.observe(7.0)
    assert before == Distribution((1.0,), (0, 0), 0.0)
    assert histogram.snapshot() == Distribution((1.0,), (1, 1), 8.0)
