"""Reads a JSONL file row by row, with line numbers, in bounded memory."""

from collections.abc import Iterator
from typing import BinaryIO, Final

import orjson

from .problem import Problem, RowRejected
from .row import Row
from .row_format import RowFormat, recognise

MAX_LINE_BYTES: Final = 16 << 20
_BOM: Final = b"\xef\xbb\xbf"


class RowReader:
    """Iterates over the rows of an open file; a bad row is a ``Problem`` in its place.

    ``format`` is that of the first row that has one; rows of another are problems. Empty lines
    count as lines and are no rows.
    """

    def __init__(self, file: BinaryIO, *, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self.format: RowFormat | None = None
        self._first_line = 0
        self._file = file
        self._max_line_bytes = max_line_bytes

    def __iter__(self) -> Iterator[Row | Problem]:
        line = 0
        while raw := self._file.readline(self._max_line_bytes + 1):
            line += 1
            if len(raw) > self._max_line_bytes:
                self._skip_line(raw)
                yield Problem(line, "line_too_long", f"over {self._max_line_bytes} bytes")
                continue
            if line == 1:
                raw = raw.removeprefix(_BOM)
            if raw.strip():
                yield self._read(raw, line)

    def _skip_line(self, raw: bytes) -> None:
        while raw and not raw.endswith(b"\n"):
            raw = self._file.readline(self._max_line_bytes)

    def _read(self, raw: bytes, line: int) -> Row | Problem:
        try:
            fields = _parse(raw)
            row_format = recognise(fields)
            self._check_format(row_format, line)
            return row_format.read(fields, line)
        except RowRejected as error:
            return error.at(line)

    def _check_format(self, found: RowFormat, line: int) -> None:
        if self.format is None:
            self.format, self._first_line = found, line
        elif found is not self.format:
            raise RowRejected(
                "mixed_formats",
                f"the format is {found.name}, but line {self._first_line} is {self.format.name}; "
                "a file has rows of one format",
            )


def _parse(raw: bytes) -> dict[str, object]:
    try:
        fields = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if raw.lstrip()[:1] == b"[":
            raise RowRejected(
                "invalid_json", "a file is no JSON array; write one object per line, without commas"
            ) from None
        raise RowRejected(
            "invalid_json", f"not valid JSON ({error}); write one object per line"
        ) from None
    return fields
