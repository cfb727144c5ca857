"""Only what was allowed is stored, nothing grows without bound, and what is erased is gone."""

import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiflora.adapters.database import Database
from multiflora.adapters.registry import DATABASE_NAME, Registry
from multiflora.adapters.registry_schema import MIGRATIONS
from multiflora.engine.training.feedback.completion import Completion, Opinion, Waiting
from multiflora.engine.training.feedback.error import CompletionNotFound, FeedbackNotFound
from multiflora.engine.training.feedback.feedback_store import FeedbackStore
from multiflora.engine.training.learning.policy import LearningPolicy
from multiflora.engine.training.learning.run_registry import RunRegistry

from .conftest import DIGESTS, on_disk, opted_in

Make = Callable[..., Completion]


def bytes_under(folder: Path) -> bytes:
    """Everything that is in any file."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_answers_are_stored_only_where_the_adapter_opted_in(
    store: FeedbackStore, make: Make
) -> None:
    others = [make("two", adapter="mute"), make("three", adapter="unknown")]
    store.keep([make("one"), *others])
    assert store.numbers("poet") == (1, 0)
    assert store.add("one", "rating", "up").completion == make("one")
    for completion_id in ("two", "three"):
        with pytest.raises(CompletionNotFound, match="only adapters that learn"):
            store.add(completion_id, "rating", "up")


def test_no_answer_of_others_is_anywhere_on_the_disk(
    stored: Registry, make: Make, tmp_path: Path
) -> None:
    store = FeedbackStore(stored.database)
    store.keep([make("two", adapter="mute", answer="a quiet word"), make("one", answer="loud")])
    assert b"loud" in bytes_under(tmp_path)
    assert b"a quiet word" not in bytes_under(tmp_path)


def test_the_last_word_of_a_kind_counts(store: FeedbackStore, make: Make) -> None:
    store.keep([make()])
    first = store.add("one", "rating", "up")
    store.add("one", "edit", "Hello!")
    last = store.add("one", "rating", "down")
    found, _ = store.page(adapter="poet")
    assert (found[0].id, found[0].value) == (last.id, "down")
    assert {one.value for one in found} == {"down", "Hello!"}
    with pytest.raises(FeedbackNotFound):
        store.get(first.id)


def test_choices_of_one_answer_are_told_apart(store: FeedbackStore, make: Make) -> None:
    store.keep([make(choice=0, answer="A"), make(choice=1, answer="B")])
    assert store.add("one", "rating", "up", choice=1).completion.answer == "B"
    assert store.answers("one") == ["A", "B"]
    with pytest.raises(CompletionNotFound, match="choice 2"):
        store.add("one", "rating", "up", choice=2)


def test_an_answer_to_another_tenant_is_not_found(store: FeedbackStore, make: Make) -> None:
    store.keep([make(tenant="us")])
    with pytest.raises(CompletionNotFound):
        store.add("one", "rating", "up", view="them")
    made = store.add("one", "rating", "up", view="us")
    assert store.page(view="them") == ([], False)
    with pytest.raises(FeedbackNotFound):
        store.delete(made.id, view="them")


def test_pages_go_back_in_time(store: FeedbackStore, make: Make) -> None:
    store.keep([make(str(number)) for number in range(3)])
    made = [store.add(str(number), "rating", "up").id for number in range(3)]
    found, has_more = store.page(limit=2)
    assert ([one.id for one in found], has_more) == (made[:0:-1], True)
    found, has_more = store.page(after=made[1])
    assert ([one.id for one in found], has_more) == ([made[0]], False)


def test_what_waits_is_what_no_run_took(store: FeedbackStore, make: Make) -> None:
    store.keep([make("one"), make("two")])
    store.add("one", "edit", "x")
    store.add("two", "rating", "up")
    assert store.waiting("poet", ["edit"]) == Waiting(1, 1000)
    assert store.waiting("poet", ["edit", "rating"]) == Waiting(2, 1000)
    assert store.waiting("poet", ["preferred"]) == Waiting(0, None)


def test_an_answer_that_was_mended_is_one_that_was_not_liked(
    store: FeedbackStore, make: Make
) -> None:
    store.keep([make(str(number)) for number in range(4)])
    store.keep([make("old", created=10)])
    for completion_id in ("0", "1", "old"):
        store.add(completion_id, "rating", "up")
    store.add("1", "edit", "better")
    store.add("2", "rating", "down")
    assert store.opinion("poet", DIGESTS["poet"], since=1000) == Opinion(num_up=1, num_down=2)
    assert store.opinion("poet", DIGESTS["mute"], since=0) == Opinion()


def test_a_name_that_is_deleted_takes_its_answers_along(
    registry: Registry, store: FeedbackStore, make: Make
) -> None:
    store.keep([make()])
    store.add("one", "rating", "up")
    registry.delete("poet")
    registry.publish("poet", DIGESTS["mute"])
    assert store.numbers("poet") == (0, 0)
    # The policy went too: a new name of the same spelling has not opted in.
    store.keep([make()])
    assert store.numbers("poet") == (0, 0)


ROWS = st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=12)


@given(rows=ROWS, most=st.integers(1, 8), oldest=st.integers(0, 20))
def test_trimming_keeps_the_bounds_and_rather_what_was_judged(
    rows: list[tuple[int, bool]], most: int, oldest: int
) -> None:
    registry = opted_in(Registry())
    store = FeedbackStore(registry.database)
    for number, (created, is_judged) in enumerate(rows):
        store.keep(
            [
                Completion(
                    id=str(number),
                    choice=0,
                    adapter="poet",
                    digest=DIGESTS["poet"],
                    prompt="p",
                    answer="a",
                    created=created,
                )
            ]
        )
        if is_judged:
            store.add(str(number), "rating", "up")
    store.trim("poet", num_completions=most, oldest=oldest)
    young = [is_judged for created, is_judged in rows if created >= oldest]
    assert store.numbers("poet") == (min(len(young), most), min(sum(young), most))
    registry.close()


def test_what_is_erased_is_in_no_file_any_more(
    stored: Registry, make: Make, tmp_path: Path
) -> None:
    store = FeedbackStore(stored.database)
    secrets = {name: f"secret of {name} {'x' * 5000}" for name in ("ann", "bob")}
    for name, text in secrets.items():
        prompt = [{"role": "user", "content": f"asked {text}"}]
        store.keep([make(name, user=name, prompt=prompt, answer=f"answered {text}")])
        store.add(name, "edit", f"edited {text}")
    (tmp_path / f"{DATABASE_NAME}.schema-5").write_bytes(secrets["ann"].encode())
    assert bytes_under(tmp_path).count(b"secret of ann") >= 4
    assert store.erase(user="ann") == (1, 1)
    found = bytes_under(tmp_path)
    assert b"secret of ann" not in found
    assert b"secret of bob" in found
    made = store.page()[0][0]
    store.delete(made.id)
    assert b"secret of" not in bytes_under(tmp_path)
    assert store.numbers("poet") == (0, 0)


def test_no_page_that_was_filled_and_split_keeps_a_trace(
    stored: Registry, make: Make, tmp_path: Path
) -> None:
    draw = random.Random(5)
    store = FeedbackStore(stored.database)
    for number in draw.sample(range(1000, 1200), 200):
        user = "ann" if number % 3 else "bob"
        answer = f"<{user}-{number}>" * draw.randint(1, 120)
        store.keep([make(str(number), user=user, answer=answer)])
        if number % 2:
            store.add(str(number), "edit", f"<{user}-{number}-edit>")
    assert b"<ann-1" in bytes_under(tmp_path)
    store.erase(user="ann")
    left = bytes_under(tmp_path)
    assert b"<ann-" not in left
    assert b"<bob-" in left


def test_erasing_needs_a_name(store: FeedbackStore) -> None:
    with pytest.raises(ValueError, match="nobody is named"):
        store.erase()


def test_a_user_of_one_adapter_can_be_erased_alone(store: FeedbackStore, make: Make) -> None:
    store.keep([make("one", user="ann"), make("two", user="bob")])
    assert store.erase(adapter="mute", user="ann") == (0, 0)
    assert store.erase(adapter="poet", user="ann") == (1, 0)
    assert store.numbers("poet") == (1, 0)


def test_a_policy_of_an_earlier_schema_is_read(tmp_path: Path) -> None:
    Database.open(tmp_path / DATABASE_NAME, MIGRATIONS[:9]).close()
    with closing(sqlite3.connect(tmp_path / DATABASE_NAME)) as connection, connection:
        connection.execute(
            "INSERT INTO learning (adapter, policy, is_keeping, updated) VALUES "
            """('poet', '{"enabled":true,"replay":null}', 1, 0)"""
        )
    database = Database.open(tmp_path / DATABASE_NAME, MIGRATIONS)
    assert RunRegistry(database).policies() == {"poet": LearningPolicy(enabled=True)}
    database.close()


def test_a_database_of_an_earlier_schema_gets_the_tables(tmp_path: Path) -> None:
    Database.open(tmp_path / DATABASE_NAME, MIGRATIONS[:5]).close()
    registry = on_disk(tmp_path)
    assert FeedbackStore(registry.database).numbers("poet") == (0, 0)
    registry.close()
