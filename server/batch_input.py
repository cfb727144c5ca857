"""The lines of a batch's input file, checked before any of them is answered."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import orjson

MAX_LINES: Final = 50_000
_MAX_LINE_BYTES: Final = 8 * 1024 * 1024
_MAX_ID_CHARS: Final = 512
_MAX_ERRORS: Final = 10


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One request; ``number`` counts from 0."""

    number: int
    custom_id: str
    body: dict[str, Any]


def read_lines(content: BinaryIO) -> Iterator[BatchLine]:
    """The requests of a file that ``problems_of`` found fine."""
    for number, raw in enumerate(content):
        fields = orjson.loads(raw)
        yield BatchLine(number, fields["custom_id"], fields["body"])


def problems_of(content: BinaryIO, *, endpoint: str) -> tuple[int, list[dict[str, Any]]]:
    """The number of lines, and the first errors as OpenAI's API lists them."""
    problems: list[dict[str, Any]] = []
    seen: set[str] = set()
    number = 0
    for number, raw in enumerate(iter(lambda: content.readline(_MAX_LINE_BYTES + 1), b""), 1):
        problem = "too many lines" if number > MAX_LINES else _problem(raw, endpoint, seen)
        if problem:
            shown = f"line {number}: {problem}"
            problems.append(
                {"code": "invalid_line", "line": number, "message": shown, "param": None}
            )
        if len(problems) >= _MAX_ERRORS or number > MAX_LINES:
            break
    if number == 0:
        message = "the input file has no lines"
        problems.append({"code": "empty_file", "line": None, "message": message, "param": None})
    return number, problems


def _problem(raw: bytes, endpoint: str, seen: set[str]) -> str | None:
    if len(raw) > _MAX_LINE_BYTES:
        return f"it has more than {_MAX_LINE_BYTES} bytes"
    try:
        fields = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return "it is not valid JSON"
    if not isinstance(fields, dict) or not isinstance(fields.get("body"), dict):
        return "it must be an object with a body that is an object"
    custom_id = fields.get("custom_id")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _MAX_ID_CHARS:
        return f"custom_id must be a text of at most {_MAX_ID_CHARS} characters"
    if custom_id in seen:
        return f"custom_id {custom_id[:50]!r} comes twice"
    seen.add(custom_id)
    if (fields.get("method"), fields.get("url")) != ("POST", endpoint):
        return f"method must be POST and url {endpoint}"
    return "a batch cannot stream" if fields["body"].get("stream") else None
