"""What adapters were taught outlives the server, and neither the adapter nor an erasure."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiflora.adapters.registry import Registry
from multiflora.engine.training.feedback.feedback_store import FeedbackStore
from multiflora.engine.training.learning.replay_registry import ReplayRegistry
from multiflora.engine.training.replay.reservoir import ReplayRow, Reservoir

from ..feedback.conftest import opted_in


def row(key: str, *, source: str = "edit", **whose: object) -> ReplayRow:
    return ReplayRow(key=key, source=source, fields={"text": key}, **whose)  # pyright: ignore[reportArgumentType]


def keys(replay: ReplayRegistry, adapter: str = "poet") -> set[str]:
    return {row.key for row in replay.reservoir(adapter, capacity=100)}


@pytest.fixture
def registry() -> Iterator[Registry]:
    registry = opted_in(Registry())
    yield registry
    registry.close()


@pytest.fixture
def replay(registry: Registry) -> ReplayRegistry:
    return ReplayRegistry(registry.database)


@given(st.lists(st.lists(st.integers(0, 60).map(str), max_size=12), max_size=6))
def test_it_holds_what_a_reservoir_would(batches: list[list[str]]) -> None:
    registry = opted_in(Registry())
    replay, expected = ReplayRegistry(registry.database), Reservoir(5)
    for batch in batches:
        replay.add("poet", map(row, batch), capacity=5)
        expected.erase(lambda row, batch=batch: row.key in batch)
        expected.add(map(row, batch))
    assert list(replay.reservoir("poet", capacity=5)) == list(expected)
    registry.close()


def test_a_question_is_repeated_as_it_was_taught_last(replay: ReplayRegistry) -> None:
    replay.add("poet", [row("hi", source="rating"), row("bye")], capacity=9)
    replay.add("poet", [row("hi", source="edit")], capacity=9)
    held = {row.key: row.source for row in replay.reservoir("poet", capacity=9)}
    assert held == {"hi": "edit", "bye": "edit"}


def test_adapters_have_reservoirs_of_their_own_that_go_with_them(
    registry: Registry, replay: ReplayRegistry
) -> None:
    replay.add("poet", [row("hi")], capacity=9)
    replay.add("mute", [row("hush")], capacity=9)
    registry.delete("poet")
    assert (keys(replay), keys(replay, "mute")) == (set(), {"hush"})
    replay.add("poet", [row("late")], capacity=9)
    assert keys(replay) == set()


def test_what_is_erased_or_too_old_is_not_repeated(
    registry: Registry, replay: ReplayRegistry
) -> None:
    """Also where the answer itself went before, for want of room."""
    store = FeedbackStore(registry.database)
    replay.add(
        "poet",
        [
            row("of ann", user="ann", tenant="red", created=50, feedback="fb-1"),
            row("of another ann", user="ann", tenant="blue", created=50, feedback="fb-2"),
            row("old", user="bob", created=10, feedback="fb-3"),
            row("kept", user="bob", created=50, feedback="fb-4"),
        ],
        capacity=9,
    )
    store.trim("poet", num_completions=9, oldest=20)
    assert keys(replay) == {"of ann", "of another ann", "kept"}
    store.erase(user="ann", view="red")
    assert keys(replay) == {"of another ann", "kept"}
    store.delete("fb-2", view="blue")
    assert keys(replay) == {"kept"}
    store.erase(adapter="poet")
    assert keys(replay) == set()
