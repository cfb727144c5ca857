"""Files are read row by row: every bad row has its line, and none takes others with it."""

import io
import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from multiflora.engine.training.data.problem import Problem
from multiflora.engine.training.data.row import Row, TextRow
from multiflora.engine.training.data.row_reader import RowReader


def read(content: bytes, **options: Any) -> list[Row | Problem]:
    return list(RowReader(io.BytesIO(content), **options))


def outcome(content: bytes, **options: Any) -> list[tuple[int, str]]:
    found = read(content, **options)
    return [(each.line, each.code if isinstance(each, Problem) else "row") for each in found]


def test_bad_rows_have_their_lines_and_good_ones_are_read() -> None:
    content = b'{"text": "a"}\n{"text": \n\n["text"]\n{"text": "b"}\n{"question": "a"}'
    assert outcome(content) == [
        (1, "row"),
        (2, "invalid_json"),
        (4, "not_an_object"),
        (5, "row"),
        (6, "unknown_format"),
    ]


def test_a_file_has_rows_of_one_format() -> None:
    reader = RowReader(io.BytesIO(b'{"x": 1}\n{"text": "a"}\n{"question": "a", "answer": "b"}\n'))
    last = list(reader)[-1]
    assert isinstance(last, Problem)
    assert last == Problem(
        3,
        "mixed_formats",
        "the format is question, but line 2 is text; a file has rows of one format",
    )
    assert reader.format is not None
    assert reader.format.name == "text"


def test_what_editors_and_other_systems_add_is_no_content() -> None:
    assert read(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}\r\n') == [
        TextRow("a", 1),
        TextRow("b", 3),
    ]
    assert read(b"") == []
    assert read(b"\xef\xbb\xbf\n \n") == []


def test_other_file_types_are_refused_with_the_remedy() -> None:
    (array, *_) = read(b'[{"text": "a"},\n')
    (pretty, *_) = read(b'{\n  "text": "a"\n}\n')
    (wide, *_) = read('{"text": "a"}'.encode("utf-16"))
    (zipped, *_) = read(b"\x1f\x8b\x08\x00")
    for problem in (array, pretty, wide, zipped):
        assert isinstance(problem, Problem)
        assert problem.code == "invalid_json"
        assert "one object per line" in problem.message


def test_lines_are_bounded() -> None:
    rows = b"".join(b'{"text": "%s"}\n' % (b"x" * size) for size in (5, 500, 6, 200))
    assert outcome(rows, max_line_bytes=100) == [
        (1, "row"),
        (2, "line_too_long"),
        (3, "row"),
        (4, "line_too_long"),
    ]


def test_memory_does_not_grow_with_the_file() -> None:
    class Rows(io.RawIOBase):
        left = 40_000

        def readline(self, size: int | None = -1, /) -> bytes:
            self.left -= 1
            return b'{"text": "%s"}\n' % (b"x" * 500) if self.left > 0 else b""

    tracemalloc.start()
    try:
        assert sum(isinstance(row, TextRow) for row in RowReader(Rows())) == 39_999  # type: ignore[arg-type]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@given(st.lists(st.text(min_size=1).filter(str.strip), max_size=8))
def test_texts_arrive_unchanged(texts: list[str]) -> None:
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    assert read(content) == [TextRow(text, line) for line, text in enumerate(texts, 1)]


@given(st.lists(st.one_of(st.binary(max_size=30), st.just(b'{"text": "a"}')), max_size=8))
def test_any_bytes_are_rows_or_problems_in_the_order_of_lines(lines: list[bytes]) -> None:
    content = b"\n".join(lines)

    def numbers() -> Iterator[int]:
        for number, line in enumerate(content.split(b"\n"), 1):
            if (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip():
                yield number

    assert [each.line for each in read(content)] == list(numbers())
