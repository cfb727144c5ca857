"""No question is on both sides of a hold-out, and what is repeated is what users wanted."""

import io
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiflora.engine.errors import RequestRejected
from multiflora.engine.training.feedback.completion import Completion, Feedback, Kind
from multiflora.engine.training.learning.run_rows import (
    hold_out,
    key_of,
    of_file,
    replayed,
    taught,
)
from multiflora.engine.training.replay.reservoir import Reservoir


def edit(question: str, answer: str) -> dict[str, Any]:
    said = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": said}


def said(kind: Kind, value: str, *, system: str | None = None, **served: Any) -> Feedback:
    asked = [{"role": "user", "content": "Hi!"}]
    prompt = [{"role": "system", "content": system}, *asked] if system else asked
    given = {"id": "one", "choice": 0, "adapter": "poet", "digest": "a", "created": 7}
    completion = Completion(**{**given, "prompt": prompt, "answer": "Hello.", **served})
    return Feedback(id="fb-1", kind=kind, value=value, created=9, completion=completion)


def file_of(*rows: Any) -> io.BytesIO:
    return io.BytesIO(b"".join(orjson.dumps(row) + b"\n" for row in rows))


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), max_size=60), st.floats(0, 0.5))
def test_a_question_is_learned_or_held_out(rows: list[tuple[int, int]], share: float) -> None:
    given_rows = [edit(str(question), str(answer)) for question, answer in rows]
    learnt, apart = hold_out(given_rows, share)
    assert sorted(map(str, learnt + apart)) == sorted(map(str, given_rows))
    questions = {key_of(row) for row in apart}
    assert not questions & {key_of(row) for row in learnt}
    assert len(questions) == int(share * len({question for question, _ in rows}))


def test_what_is_wanted_is_taught_and_what_is_disliked_is_not() -> None:
    found = list(
        taught(
            [
                said("edit", "Ahoy.", user="ann", tenant="red"),
                said("preferred", "Hey.", system="Be brief."),
                said("rating", "up"),
                said("rating", "up", is_cut=True),
                said("rating", "down"),
            ]
        )
    )
    assert [row.fields["messages"][-1]["content"] for row in found] == ["Ahoy.", "Hey.", "Hello."]
    assert [row.source for row in found] == ["edit", "preferred", "rating"]
    assert found[0].task == found[2].task == ""
    assert found[1].task
    assert (found[0].user, found[0].tenant, found[0].created) == ("ann", "red", 7)
    assert found[0].feedback == "fb-1"
    assert found[0].key == found[2].key != found[1].key


def test_earlier_answers_of_a_conversation_are_not_taught() -> None:
    turns = [
        {"role": "user", "content": "Hi!"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "And?"},
    ]
    (row,) = taught([said("edit", "Bye.", prompt=turns)])
    assert [turn.get("weight") for turn in row.fields["messages"]] == [None, 0, None, None]
    assert row.key == key_of({"prompt": turns})


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"question": "Hi!", "answer": "Hello."}], {"messages"}),
        ([{"prompt": "3 + 4 =", "completion": " 7"}], {"prompt", "completion"}),
        ([{"text": "One."}, {"text": "Two."}], {"text"}),
    ],
)
def test_a_file_of_any_supervised_format_can_be_repeated(rows: Any, expected: set[str]) -> None:
    reservoir = Reservoir(9)
    reservoir.add(of_file(file_of(*rows)))
    found = replayed(reservoir, [])
    assert len(found) == len(rows)
    assert set(found[0]) == expected
    # The file that is written is one that can be read.
    assert [row.fields for row in of_file(file_of(*found))] == found


@pytest.mark.parametrize(
    "bad", [{"text": "x", "y": 1}, {"prompt": "a", "chosen": "b", "rejected": "c"}]
)
def test_a_file_of_something_else_cannot(bad: Any) -> None:
    with pytest.raises(RequestRejected, match="line 1 is no supervised row"):
        list(of_file(file_of(bad)))


def test_what_is_answered_anew_is_not_repeated() -> None:
    reservoir = Reservoir(9)
    reservoir.add(of_file(file_of(edit("Hi!", "Hello."), edit("Bye!", "Bye."))))
    learnt = [{"prompt": [{"role": "user", "content": "Hi!"}], "chosen": [], "rejected": []}]
    assert [row["messages"][-1]["content"] for row in replayed(reservoir, learnt)] == ["Bye."]
