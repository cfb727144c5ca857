"""Every format is read as what it says, and whatever is not one format exactly is refused."""

from typing import Any

import pytest

from multiflora.engine.training.data.problem import RowRejected
from multiflora.engine.training.data.row import (
    ChatPair,
    ChatRating,
    ChatRow,
    CompletionPair,
    CompletionRating,
    CompletionRow,
    TextRow,
)
from multiflora.engine.training.data.row_format import FORMATS, recognise

USER = {"role": "user", "content": "1 + 1?"}
ANSWER = {"role": "assistant", "content": "2"}
WORSE = {"role": "assistant", "content": "3"}
CHAT = ChatRow((USER, ANSWER), (False, True), 7)


def read(fields: Any) -> Any:
    return recognise(fields).read(fields, 7)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"messages": [USER, ANSWER]}, CHAT),
        ({"messages": [USER, ANSWER], "tools": [], "parallel_tool_calls": True, "id": 3}, CHAT),
        ({"prompt": [USER], "completion": [ANSWER]}, CHAT),
        ({"question": "1 + 1?", "answer": "2"}, CHAT),
        ({"instruction": "1 + 1?", "input": "", "output": "2"}, CHAT),
        ({"instruction": "1 + 1?", "output": "2", "metadata": {"a": 1}}, CHAT),
        ({"prompt": "1 + 1 =", "completion": " 2"}, CompletionRow("1 + 1 =", " 2", 7)),
        ({"text": "1 + 1 = 2"}, TextRow("1 + 1 = 2", 7)),
        (
            {
                "input": {"messages": [USER], "tools": None},
                "preferred_output": [ANSWER],
                "non_preferred_output": [WORSE],
            },
            ChatPair((USER,), ANSWER, WORSE, 7),
        ),
        (
            {"prompt": [USER], "chosen": [ANSWER], "rejected": [WORSE]},
            ChatPair((USER,), ANSWER, WORSE, 7),
        ),
        (
            {"prompt": "1 + 1 =", "chosen": " 2", "rejected": " 3"},
            CompletionPair("1 + 1 =", " 2", " 3", 7),
        ),
        (
            {"prompt": [USER], "completion": [WORSE], "label": False},
            ChatRating((USER,), WORSE, False, 7),
        ),
        (
            {"prompt": "1 + 1 =", "completion": " 2", "label": True},
            CompletionRating("1 + 1 =", " 2", True, 7),
        ),
    ],
)
def test_a_format_is_recognised_by_its_fields(fields: Any, expected: object) -> None:
    assert read(fields) == expected


def test_every_format_is_one_of_a_kind() -> None:
    assert len({known.name for known in FORMATS}) == len(FORMATS)
    assert {known.name for known in FORMATS if known.method == "dpo"} == {
        "preference",
        "pair of messages",
        "pair of texts",
    }


@pytest.mark.parametrize("label", [1, "true", None])
def test_a_rating_is_good_or_bad(label: object) -> None:
    with pytest.raises(RowRejected, match=r"true .* or false"):
        read({"prompt": "1 + 1 =", "completion": " 2", "label": label})


def test_an_instruction_with_input_and_system_is_a_conversation() -> None:
    row = read({"instruction": "Add.", "input": "1 1", "output": "2", "system": "Be brief."})
    assert [message["role"] for message in row.messages] == ["system", "user", "assistant"]
    assert row.messages[1]["content"] == "Add.\n\n1 1"
    assert (row.prompt, row.answers) == ("Be brief.\nAdd.\n\n1 1", ("2",))


def test_messages_are_read_as_the_chat_route_reads_them() -> None:
    parts = [{"type": "text", "text": "1 +"}, {"type": "text", "text": "1?"}]
    developer = {"role": "developer", "content": "Be brief."}
    row = read({"messages": [developer, {"role": "user", "content": parts}, ANSWER]})
    assert row.messages[0] == {"role": "system", "content": "Be brief."}
    assert row.messages[1]["content"] == "1 +\n1?"


def test_weights_choose_the_answers_and_thoughts_stay() -> None:
    thought = {"role": "assistant", "content": "<think>\nhm\n</think>\n\n2"}
    wrong = {"role": "assistant", "content": "<think>no</think>3", "weight": 0}
    row = read({"messages": [USER, wrong, USER, {**thought, "weight": 1}]})
    assert row.is_trained == (False, False, False, True)
    assert row.messages[1]["content"] == "<think>no</think>3"
    assert row.messages[3] == thought


def test_answers_in_a_prompt_are_never_trained() -> None:
    row = read({"prompt": [USER, WORSE, USER], "completion": [ANSWER]})
    assert row.is_trained == (False, False, False, True)


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ([1], "not_an_object", "a JSON object was expected, not a list"),
        ({"foo": 1}, "unknown_format", "a row with foo .* messages, or input"),
        ({}, "unknown_format", "no known format"),
        ({"prompt": "a", "completion": "b", "text": "c"}, "ambiguous_format", "or text; keep"),
        (
            {"prompt": "a", "completion": "b", "chosen": "c", "rejected": "d"},
            *("ambiguous_format", "chosen"),
        ),
        ({"text": "a", "label": 1}, "unknown_field", "'label'; text rows have id, metadata, text"),
        ({"text": 3}, "invalid_field", "text: a text was expected, not a int"),
        ({"text": None}, "invalid_field", "nothing"),
        ({"text": " \n"}, "empty_field", "text: the text is empty"),
        ({"prompt": "", "completion": "b"}, "empty_field", "prompt"),
        ({"instruction": "a", "input": 3, "output": "b"}, "invalid_field", "input"),
        ({"messages": [USER, ANSWER], "tools": [{}]}, "unsupported_tools", "leave them out"),
        ({"prompt": "a", "completion": [ANSWER]}, "invalid_message", "prompt: a list"),
        (
            {"prompt": [USER, ANSWER], "chosen": [ANSWER], "rejected": [WORSE]},
            *("invalid_message", "an answer already"),
        ),
        ({"prompt": [USER], "chosen": [USER], "rejected": [WORSE]}, "invalid_message", "assistant"),
        (
            {"prompt": [USER], "chosen": [ANSWER, USER, ANSWER], "rejected": [WORSE]},
            *("invalid_message", "chosen: one message"),
        ),
        (
            {"input": [USER], "preferred_output": [ANSWER], "non_preferred_output": [WORSE]},
            *("invalid_message", "input: an object with messages"),
        ),
        (
            {
                "input": {"messages": [USER], "x": 1},
                "preferred_output": [],
                "non_preferred_output": [],
            },
            *("unknown_field", "'x'"),
        ),
    ],
)
def test_what_is_not_one_format_is_refused(fields: Any, code: str, words: str) -> None:
    with pytest.raises(RowRejected, match=words) as caught:
        read(fields)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("messages", "code", "words"),
    [
        ([], "invalid_message", "not an empty list"),
        ("hi", "invalid_message", "not 'hi'"),
        ([USER, "hi"], "invalid_message", r"messages\[1\]: a message was expected"),
        ([USER], "invalid_message", "the last message must be the assistant's"),
        ([ANSWER], "invalid_message", "needs a message before it"),
        ([USER, {**ANSWER, "weight": 0}], "nothing_to_learn", "weight 0"),
        ([USER, {**ANSWER, "weight": 0.5}], "invalid_message", "0.5 is neither 0 nor 1"),
        ([USER, {**ANSWER, "weight": True}], "invalid_message", "neither"),
        ([{**USER, "weight": 1}, ANSWER], "invalid_message", "only messages of the role assistant"),
        ([USER, {**ANSWER, "content": " "}], "empty_answer", r"messages\[1\]"),
        ([USER, {**ANSWER, "content": None}], "invalid_message", "content: a text was expected"),
        ([{"role": "tool", "content": "x"}, ANSWER], "invalid_message", "'tool' is none of"),
        ([{"role": "user", "content": [{"type": "image_url"}]}, ANSWER], "invalid_message", "text"),
        ([USER, {**ANSWER, "tool_calls": [{}]}], "unsupported_tools", "tool calls"),
        ([USER, {**ANSWER, "wieght": 0}], "invalid_message", "unknown field 'wieght'"),
        ([USER, {**ANSWER, "name": 3}], "invalid_message", "name"),
        ([USER, ANSWER] * 501, "invalid_message", "1002 messages; at most 1000"),
    ],
)
def test_messages_that_cannot_be_trained_are_named(messages: Any, code: str, words: str) -> None:
    with pytest.raises(RowRejected, match=words) as caught:
        read({"messages": messages})
    assert caught.value.code == code


def test_a_message_cannot_flood_or_forge_a_log() -> None:
    with pytest.raises(RowRejected) as caught:
        read({"\n\x1b" + "x" * 10_000: 1})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600
