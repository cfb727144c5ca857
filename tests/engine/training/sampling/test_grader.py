"""Graders pass what they should, in time that grows with the answer, whatever the pattern."""

import time
from typing import Any

import pytest

from multiflora.engine.errors import RequestRejected
from multiflora.engine.training.sampling.grader import (
    ExactMatch,
    PatternMatch,
    compile_pattern,
    compile_schema,
)

GSM8K = r"#### (-?[\d,.]+)"


@pytest.mark.parametrize(
    ("answer", "expected", "passes"),
    [
        ("7*24 = 168\n#### 168", "168", True),
        ("7*24 = 168\n#### 168", "So it is.\n#### 168", True),
        ("#### 1,168.0", "1168", True),
        ("#### 1\nno:\n#### 168", "168", True),
        ("#### 168\nno:\n#### 1", "168", False),
        ("168", "168", False),
        ("#### 168", "", False),
    ],
)
def test_exact_match_compares_what_is_extracted(answer: str, expected: str, passes: bool) -> None:
    grader = ExactMatch(compile_pattern(GSM8K, "extract"))
    assert grader.passes(answer, expected) is passes


def test_exact_match_without_a_pattern_compares_all() -> None:
    assert ExactMatch().passes(" yes\n", "yes")
    assert not ExactMatch().passes("Yes", "yes")
    assert ExactMatch(ignore_case=True).passes("Yes", "yes")
    assert not ExactMatch().passes("", "")
    assert not ExactMatch().passes("nan", "NaN")


def test_a_pattern_passes_where_it_occurs() -> None:
    grader = PatternMatch(compile_pattern(r"(?i)\bmatey\b", "pattern"))
    assert grader.passes("Ahoy, Matey!", None)
    assert not grader.passes("mateyness", None)


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(a|a)*b", r"(.*)*x"])
def test_no_pattern_can_stop_the_clock(pattern: str) -> None:
    began = time.perf_counter()
    assert not PatternMatch(compile_pattern(pattern, "pattern")).passes("a" * 50_000 + "!", None)
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    ("pattern", "message"),
    [(r"(a)\1", "no backreferences"), ("(a", "missing"), ("x" * 3000, "2048 characters")],
)
def test_what_has_no_linear_time_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(RequestRejected, match=message) as refused:
        compile_pattern(pattern, "grader.pattern")
    assert refused.value.param == "grader.pattern"


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"answer": {"type": "string", "pattern": "^(a+)+$"}},
    "required": ["answer"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        ('{"answer": "aa"}', True),
        ('{"answer": "ab"}', False),
        ('{"answer": "a", "more": 1}', False),
        ('Here it is: {"answer": "a"}', False),
        ("{", False),
        ('{"answer": "' + "a" * 50_000 + '!"}', False),
    ],
)
def test_a_schema_accepts_json_and_nothing_else(answer: str, passes: bool) -> None:
    assert compile_schema(SCHEMA, "schema").passes(answer, None) is passes


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "nonsense"}, "nonsense"),
        ({"$ref": "http://127.0.0.1:1/schema"}, "is elsewhere"),
        ({"$ref": "file:///etc/passwd"}, "elsewhere"),
        ({"pattern": "(?=x)"}, "regex"),
        ({"description": "x" * (65 << 10)}, "65536 bytes"),
    ],
)
def test_a_schema_that_is_none_or_lies_elsewhere_is_refused(
    schema: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestRejected, match=message):
        compile_schema(schema, "grader.schema")
