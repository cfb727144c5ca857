"""Rows become segments."""

from hypothesis import given
from hypothesis import strategies as st

from multiflora.adapters.batch import make_segments
from multiflora.kernels.ops import Segment


def test_equal_neighbours_share_one_segment_and_base_rows_have_none() -> None:
    runs = [(2, ((0, 1.0),)), (3, ((0, 1.0),)), (4, ()), (1, ((2, 1.0),))]
    assert make_segments(runs) == (Segment(0, 5, 0), Segment(9, 10, 2))


def test_a_blend_emits_one_segment_per_parent_in_its_own_order() -> None:
    blend = ((3, 0.25), (1, -2.0))
    assert make_segments([(1, ()), (2, blend)]) == (
        Segment(1, 3, 3, 0.25),
        Segment(1, 3, 1, -2.0),
    )


def test_the_same_version_with_another_weight_is_another_segment() -> None:
    runs = [(1, ((0, 1.0),)), (1, ((0, 0.5),))]
    assert make_segments(runs) == (Segment(0, 1, 0, 1.0), Segment(1, 2, 0, 0.5))


_BLENDS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([0.5, 1.0])), max_size=3, unique=True
).map(tuple)


@given(st.lists(st.tuples(st.integers(1, 5), _BLENDS), max_size=10))
def test_every_row_gets_exactly_its_blend(runs: list[tuple[int, tuple]]) -> None:
    wanted = [blend for count, blend in runs for _ in range(count)]
    segments = make_segments(runs)
    found = [
        tuple((s.slot, s.weight) for s in segments if s.start <= row < s.stop)
        for row in range(len(wanted))
    ]
    assert found == wanted
