"""The rows of a run: what is learned of its feedback, what is held out, and what is repeated."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, Final

from ...errors import RequestRejected
from ..data.row import ChatRow, CompletionRow, TextRow
from ..data.row import Row as FileRow
from ..data.row_reader import RowReader
from ..feedback.completion import Feedback, Prompt
from ..feedback.training_row import Row, of_one_format, question_of, taught_row
from ..replay.reservoir import ReplayRow, Reservoir

_KEY_BYTES: Final = 16
_FILE: Final = "file"
_PARAM: Final = "replay.file"


def key_of(row: Row) -> str:
    """A digest of the question: the same for all rows that answer it."""
    return hashlib.blake2b(question_of(row), digest_size=_KEY_BYTES).hexdigest()


def hold_out(rows: Sequence[Row], share: float) -> tuple[list[Row], list[Row]]:
    """Rows to learn, and those of a ``share`` of the questions, rounded down, to measure.

    Questions are drawn by a hash, so that none is on both sides, and the same ones are drawn again.
    """
    keys = [key_of(row) for row in rows]
    questions = sorted(set(keys))
    apart = set(questions[: int(share * len(questions))])
    learnt = [row for row, key in zip(rows, keys, strict=True) if key not in apart]
    return learnt, [row for row, key in zip(rows, keys, strict=True) if key in apart]


def taught(feedback: Iterable[Feedback]) -> Iterator[ReplayRow]:
    """What an adapter was taught, for its reservoir: by kind of feedback and by system prompt."""
    for one in feedback:
        row, served = taught_row(one), one.completion
        if row is not None:
            yield ReplayRow(
                key=key_of(row),
                source=one.kind,
                task=_task(served.prompt),
                feedback=one.id,
                tenant=served.tenant,
                user=served.user,
                created=served.created,
                fields=row,
            )


def of_file(file: BinaryIO) -> Iterator[ReplayRow]:
    """The supervised rows of a training file. Raises ``RequestRejected`` for others."""
    for found in RowReader(file):
        row = _fields(found) if isinstance(found, FileRow) else None
        if row is None:
            raise RequestRejected(
                f"{_PARAM}: line {found.line} is no supervised row; name a file of what the "
                "adapter was taught",
                param=_PARAM,
            )
        task = _task(row["messages"]) if "messages" in row else ""
        yield ReplayRow(key=key_of(row), source=_FILE, task=task, fields=row)


def replayed(reservoir: Reservoir, learnt: Iterable[Row]) -> list[Row]:
    """What to repeat beside ``learnt``: a question that is answered anew is not."""
    anew = {key_of(row) for row in learnt}
    return of_one_format([dict(row.fields) for row in reservoir if row.key not in anew])


def _fields(row: FileRow) -> Row | None:
    match row:
        case ChatRow(messages, is_trained):
            pairs = zip(messages, is_trained, strict=True)
            return {"messages": [_weighed(dict(message), learn) for message, learn in pairs]}
        case CompletionRow(prompt, completion):
            return {"prompt": prompt, "completion": completion}
        case TextRow(text):
            return {"text": text}
        case _:
            return None


def _weighed(message: Row, is_trained: bool) -> Row:
    return {**message, "weight": int(is_trained)} if message["role"] == "assistant" else message


def _task(prompt: Prompt) -> str:
    """Applications that share an adapter differ by their system prompts."""
    if isinstance(prompt, str) or prompt[0]["role"] != "system":
        return ""
    text = str(prompt[0]["content"]).encode()
    return hashlib.blake2b(text, digest_size=_KEY_BYTES).hexdigest()
