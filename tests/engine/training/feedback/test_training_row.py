"""What users said becomes rows that the trainer's own reader takes, and nothing else."""

import io
from collections.abc import Callable
from typing import Any

import pytest

from multiflora.engine.training.data.problem import Problem
from multiflora.engine.training.data.row import ChatPair, ChatRow, CompletionPair, CompletionRow
from multiflora.engine.training.data.row_reader import RowReader
from multiflora.engine.training.feedback.completion import Completion, Feedback, Kind
from multiflora.engine.training.feedback.training_row import RowKind, as_jsonl, rows_of

Make = Callable[..., Completion]


def say(kind: Kind, value: str, completion: Completion) -> Feedback:
    return Feedback(id="fb-1", kind=kind, value=value, created=1, completion=completion)


def rows(kind: RowKind, *feedback: Feedback, answers: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    return rows_of(feedback, kind, lambda completion_id: list(answers))


def read(found: list[dict[str, Any]]) -> list[Any]:
    """As a job reads them."""
    read_rows = list(RowReader(io.BytesIO(b"".join(as_jsonl(found)))))
    assert not any(isinstance(row, Problem) for row in read_rows)
    return read_rows


def test_an_edit_is_an_answer_to_learn_and_a_pair(make: Make) -> None:
    edit = say("edit", "Ahoy.", make())
    (row,) = read(rows("sft", edit))
    assert isinstance(row, ChatRow)
    assert row.answers == ("Ahoy.",)
    (pair,) = read(rows("dpo", edit))
    assert isinstance(pair, ChatPair)
    assert (pair.chosen, pair.rejected) == ("Ahoy.", "Hello.")
    assert rows("sft", edit)[0]["id"] == "fb-1"


def test_plain_text_stays_plain(make: Make) -> None:
    edit = say("edit", " 7", make(prompt="3 + 4 =", answer=" 8"))
    (row,) = read(rows("sft", edit))
    assert isinstance(row, CompletionRow)
    (pair,) = read(rows("dpo", edit))
    assert isinstance(pair, CompletionPair)
    assert (pair.chosen, pair.rejected) == (" 7", " 8")


def test_a_choice_is_preferred_to_all_that_was_served_with_it(make: Make) -> None:
    preferred = say("preferred", "B", make(answer="A"))
    found = read(rows("dpo", preferred, answers=("A", "B", "C", "A", " ")))
    assert [(pair.chosen, pair.rejected) for pair in found] == [("B", "A"), ("B", "C")]


def test_an_edit_that_changes_nothing_is_no_pair(make: Make) -> None:
    assert rows("dpo", say("edit", "Hello.", make())) == []


@pytest.mark.parametrize("value", ["up", "down"])
def test_ratings_are_labels_of_what_was_served(make: Make, value: str) -> None:
    (row,) = rows("kto", say("rating", value, make()))
    assert row["label"] is (value == "up")
    assert row["completion"] == [{"role": "assistant", "content": "Hello."}]
    (plain,) = rows("kto", say("rating", value, make(prompt="3 + 4 =", answer=" 7")))
    assert (plain["prompt"], plain["completion"]) == ("3 + 4 =", " 7")


def test_an_answer_that_was_cut_off_is_no_example_of_how_to_end(make: Make) -> None:
    assert rows("kto", say("rating", "up", make(is_cut=True))) == []
    assert len(rows("kto", say("rating", "down", make(is_cut=True)))) == 1


def test_a_file_has_conversations_or_texts_whichever_are_more(make: Make) -> None:
    chat, text = make(), make(prompt="3 + 4 =", answer=" 8")
    found = rows("sft", say("edit", "x", chat), say("edit", "y", text), say("edit", "z", text))
    assert [row["completion"] for row in found] == ["y", "z"]
