"""Labels are bounded, and rates stay true when the first places change."""

from hypothesis import given
from hypothesis import strategies as st

from multiflora.server.metric.board import OTHER, Board


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def ask(board: Board, name: str, times: int = 1) -> None:
    for _ in range(times):
        for tally in board.of(name):
            tally.outcomes["ok"] += 1


def counted(board: Board) -> dict[str, int]:
    return {label: tally.outcomes["ok"] for label, tally in board.shown().items()}


def test_the_base_is_always_shown_by_name_and_the_rest_as_one():
    board = Board("base", num_seats=2)
    for name in ("a", "b", "c", "d", "base"):
        ask(board, name)
    assert counted(board) == {"base": 1, "a": 1, "b": 1, OTHER: 2}
    assert board.total.outcomes["ok"] == 5
    assert {name: tally.outcomes["ok"] for name, tally in board.adapters.items()} == dict.fromkeys(
        "abcd", 1
    )


def test_an_adapter_in_demand_takes_the_place_of_an_idle_one_and_begins_at_zero():
    clock = Clock()
    board = Board("base", num_seats=2, clock=clock)
    ask(board, "a", 2)
    ask(board, "b", 1)
    ask(board, "c", 9)
    clock.seconds = 31
    ask(board, "c")
    assert counted(board) == {"base": 0, "a": 2, "c": 1, OTHER: 9}
    assert board.adapters["c"].outcomes["ok"] == 10


def test_a_small_lead_changes_nothing():
    clock = Clock()
    board = Board("base", num_seats=1, clock=clock)
    ask(board, "a", 10)
    ask(board, "b", 15)
    clock.seconds = 31
    ask(board, "b")
    assert counted(board) == {"base": 0, "a": 10, OTHER: 16}


@given(st.lists(st.tuples(st.sampled_from("abcdefg"), st.integers(0, 20))))
def test_no_label_ever_counts_down_and_nothing_is_lost(asked: list[tuple[str, int]]):
    clock = Clock()
    board = Board("base", num_seats=3, clock=clock)
    seen: dict[str, int] = {}
    for name, pause in asked:
        clock.seconds += pause
        ask(board, name)
        shown = counted(board)
        assert len(shown) <= 5
        for label, count in shown.items():
            # A name that comes back begins anew, as a counter of a new process does.
            assert count >= seen.get(label, 0) or count == 1
        seen = shown
    assert board.total.outcomes["ok"] == len(asked)
    assert sum(tally.outcomes["ok"] for tally in board.adapters.values()) == len(asked)


def test_adapters_that_are_gone_are_forgotten():
    board = Board("base")
    ask(board, "a")
    ask(board, "b")
    board.keep_only({"b"})
    assert list(board.adapters) == ["b"]
