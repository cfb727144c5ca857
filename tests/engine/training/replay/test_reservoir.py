"""A reservoir is bounded, uniform inside strata, and forgets for good."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from multiflora.engine.training.replay.reservoir import ReplayRow, Reservoir


def row(key: str, source: str = "", task: str = "") -> ReplayRow:
    return ReplayRow(key=key, source=source, task=task, fields={"text": key})


ROWS = st.builds(
    row, st.integers(0, 40).map(str), st.sampled_from(["user", "seed"]), st.sampled_from(["a", "b"])
)
ACTIONS = st.lists(st.one_of(ROWS, st.integers(0, 40).map(str)), max_size=80)


@given(capacity=st.integers(1, 12), actions=ACTIONS, seed=st.integers(0, 3))
def test_a_stratum_is_what_was_added_and_not_erased_below_its_threshold(
    capacity: int, actions: list[ReplayRow | str], seed: int
) -> None:
    """That makes it a uniform sample: a row's priority has nothing to do with the row."""
    reservoir, known = Reservoir(capacity, seed=seed), {}
    for action in actions:
        if isinstance(action, str):
            reservoir.erase(lambda row, key=action: row.key == key)
            known = {place: one for place, one in known.items() if place[1] != action}
        else:
            reservoir.add([action])
            known[action.stratum, action.key] = action
        assert len(reservoir) <= capacity
    expected = {
        place
        for place, one in known.items()
        if reservoir._priority(one.key) < reservoir._strata[one.stratum].threshold
    }
    assert {(one.stratum, one.key) for one in reservoir} == expected
    sizes = reservoir.sizes()
    if len(known) >= capacity and not any(isinstance(action, str) for action in actions):
        assert len(reservoir) == capacity
    if sizes:
        complete = Counter(place[0] for place in known)
        # A stratum that lost rows for want of room was a largest one.
        for name, size in sizes.items():
            if size < complete[name] and not any(isinstance(a, str) for a in actions):
                assert size >= max(sizes.values()) - 1


def test_every_row_is_kept_equally_often() -> None:
    counts = Counter(
        kept.key
        for seed in range(400)
        for kept in filled(Reservoir(5, seed=seed), [row(str(n)) for n in range(20)])
    )
    # 400 * 5 / 20 = 100 each, with a standard deviation below 9.
    assert all(60 < counts[str(n)] < 140 for n in range(20))


def filled(reservoir: Reservoir, rows: list[ReplayRow]) -> Reservoir:
    reservoir.add(rows)
    return reservoir


@given(rows=st.lists(ROWS, max_size=30), seed=st.integers(0, 3))
def test_the_order_of_rows_does_not_matter(rows: list[ReplayRow], seed: int) -> None:
    one = filled(Reservoir(100, seed=seed), rows)
    other = filled(Reservoir(100, seed=seed), rows[::-1])
    assert [kept.key for kept in one] == [kept.key for kept in other]


@given(rows=st.lists(ROWS, max_size=30), erased=st.integers(0, 40).map(str))
def test_a_restored_reservoir_goes_on_as_it_was(rows: list[ReplayRow], erased: str) -> None:
    reservoir = filled(Reservoir(6, seed=4), rows)
    restored = Reservoir.restored(6, list(reservoir), reservoir.thresholds, seed=4)
    for each in (reservoir, restored):
        each.erase(lambda row: row.key == erased)
        each.add(row(str(n), "user", "a") for n in range(50, 60))
    assert list(restored) == list(reservoir)


def test_less_room_keeps_a_part_of_what_was_held() -> None:
    reservoir = filled(Reservoir(8), [row(str(n)) for n in range(20)])
    less = Reservoir.restored(3, list(reservoir), reservoir.thresholds)
    assert list(less) == list(reservoir)[:3]


def test_erasing_says_how_many_went() -> None:
    reservoir = filled(Reservoir(8), [row("secret"), row("kept")])
    assert reservoir.erase(lambda row: row.key == "secret") == 1
    assert [row.key for row in reservoir] == ["kept"]
