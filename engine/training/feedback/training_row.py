"""From feedback to rows of training files: edits, choices and ratings as the trainer reads them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Literal, TypeAlias

import orjson

from ..data.config import Method
from .completion import Feedback, Kind

RowKind: TypeAlias = Literal["sft", "dpo", "kto"]
Row: TypeAlias = dict[str, Any]
# The answers of all choices of a completion, by its id.
Answers: TypeAlias = Callable[[str], list[str]]

KINDS: Final[Mapping[RowKind, tuple[Kind, ...]]] = {
    "sft": ("edit",),
    "dpo": ("edit", "preferred"),
    "kto": ("rating",),
}
ROW_KIND_OF_METHOD: Final[Mapping[str, RowKind]] = {
    "supervised": "sft",
    "dpo": "dpo",
    "kto": "kto",
}


def row_kind_of(method: Method) -> RowKind:
    """What a method learns from."""
    return ROW_KIND_OF_METHOD[method]


def rows_of(feedback: Iterable[Feedback], kind: RowKind, answers: Answers) -> list[Row]:
    """All rows that can be trained on, in order; each has the ``id`` of its feedback.

    A file has rows of one format: of conversations and plain texts, the more frequent stay.
    """
    found = [row for one in feedback for row in _ROWS[kind](one, answers)]
    chats = [row for row in found if _is_chat(row)]
    texts = [row for row in found if not _is_chat(row)]
    return chats if len(chats) >= len(texts) else texts


def as_jsonl(rows: Iterable[Row]) -> Iterator[bytes]:
    return (orjson.dumps(row) + b"\n" for row in rows)


def _supervised(feedback: Feedback, answers: Answers) -> list[Row]:
    prompt = feedback.completion.prompt
    if feedback.kind != "edit":
        return []
    if isinstance(prompt, str):
        return [{"id": feedback.id, "prompt": prompt, "completion": feedback.value}]
    return [{"id": feedback.id, "messages": [*prompt, _answer(feedback.value)]}]


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


def _is_chat(row: Row) -> bool:
    return "messages" in row or not isinstance(row["prompt"], str)


_ROWS: Final = {"sft": _supervised, "dpo": _pairs, "kto": _ratings}
