"""From feedback to rows of training files: edits, choices and ratings as the trainer reads them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

import orjson

from ..data.config import Method
from .completion import Feedback, Kind, Prompt

RowKind: TypeAlias = Literal["sft", "dpo", "kto"]
Row: TypeAlias = dict[str, Any]
# The answers of all choices of a completion, by its id.
Answers: TypeAlias = Callable[[str], list[str]]

KINDS: Final[Mapping[RowKind, tuple[Kind, ...]]] = {
    "sft": ("edit",),
    "dpo": ("edit", "preferred"),
    "kto": ("rating",),
}
_SHAPES: Final = ("chat", "completion", "text")
ROW_KIND_OF_METHOD: Final[Mapping[str, RowKind]] = {
    "supervised": "sft",
    "dpo": "dpo",
    "kto": "kto",
}


def row_kind_of(method: Method) -> RowKind:
    """What a method learns from."""
    return ROW_KIND_OF_METHOD[method]


def rows_of(feedback: Iterable[Feedback], kind: RowKind, answers: Answers) -> list[Row]:
    """All rows of one format that can be trained on; ``id`` is that of their feedback."""
    return of_one_format([row for one in feedback for row in _ROWS[kind](one, answers)])


def of_one_format(rows: Sequence[Row]) -> list[Row]:
    """A file has rows of one format: of conversations and texts, the more frequent stay."""
    shapes = [_shape(row) for row in rows]
    usual = max(_SHAPES, key=shapes.count)
    return [row for row, shape in zip(rows, shapes, strict=True) if shape == usual]


def taught_row(feedback: Feedback) -> Row | None:
    """What users want to be answered, as a supervised row; None for what they only dislike."""
    served = feedback.completion
    if feedback.kind != "rating":
        return _supervised_row(feedback, feedback.value)
    if feedback.value != "up" or served.is_cut or not served.answer.strip():
        return None
    return _supervised_row(feedback, served.answer)


def question_of(row: Row) -> bytes:
    """What is to be answered, the same for equal questions; of a plain text, all of it."""
    if "messages" in row:
        return _canonical(row["messages"][:-1])
    return _canonical(row["prompt"] if "prompt" in row else [row["text"]])


def as_jsonl(rows: Iterable[Row]) -> Iterator[bytes]:
    return (orjson.dumps(row) + b"\n" for row in rows)


def _supervised(feedback: Feedback, answers: Answers) -> list[Row]:
    return [_supervised_row(feedback, feedback.value)] if feedback.kind == "edit" else []


def _supervised_row(feedback: Feedback, text: str) -> Row:
    """Earlier answers of a conversation are not learned: nobody said that they are good."""
    prompt = feedback.completion.prompt
    if isinstance(prompt, str):
        return {"id": feedback.id, "prompt": prompt, "completion": text}
    said = [{**one, "weight": 0} if one["role"] == "assistant" else one for one in prompt]
    return {"id": feedback.id, "messages": [*said, _answer(text)]}


def _pairs(feedback: Feedback, answers: Answers) -> list[Row]:
    """The text that should have been served against what was: for a choice, against all of it."""
    served = feedback.completion
    rejected = [served.answer] if feedback.kind == "edit" else answers(served.id)
    return [
        {
            "id": feedback.id,
            "prompt": served.prompt,
            "chosen": _shaped(served.prompt, feedback.value),
            "rejected": _shaped(served.prompt, answer),
        }
        for answer in dict.fromkeys(rejected)
        if answer.strip() and answer != feedback.value
    ]


def _ratings(feedback: Feedback, answers: Answers) -> list[Row]:
    served = feedback.completion
    is_good = feedback.value == "up"
    # Where an answer was cut off, nobody found that it ended well.
    if not served.answer.strip() or (is_good and served.is_cut):
        return []
    completion = _shaped(served.prompt, served.answer)
    return [
        {"id": feedback.id, "prompt": served.prompt, "completion": completion, "label": is_good}
    ]


def _shaped(prompt: object, text: str) -> str | list[dict[str, str]]:
    return text if isinstance(prompt, str) else [_answer(text)]


def _answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _shape(row: Row) -> str:
    if "text" in row:
        return "text"
    return "chat" if "messages" in row or not isinstance(row["prompt"], str) else "completion"


def _canonical(prompt: Prompt) -> bytes:
    """Without the weights, which belong to answers."""
    if isinstance(prompt, str):
        return orjson.dumps(prompt)
    plain = [one if isinstance(one, str) else _without_weight(one) for one in prompt]
    return orjson.dumps(plain, option=orjson.OPT_SORT_KEYS)


def _without_weight(message: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name != "weight"}


_ROWS: Final = {"sft": _supervised, "dpo": _pairs, "kto": _ratings}
