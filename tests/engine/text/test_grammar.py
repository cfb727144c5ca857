"""Grammars within bounds are built; everything else is refused before a parser sees it."""

import time

import pytest

from multiflora.engine.text.grammar import (
    InvalidGrammar,
    choice_grammar,
    json_grammar,
    problem_of,
    regex_grammar,
    text_grammar,
)


def nested(depth):
    schema = {"type": "object"}
    for _ in range(depth):
        schema = {"properties": {"x": schema}}
    return schema


@pytest.mark.parametrize(
    ("build", "value", "problem"),
    [
        (json_grammar, nested(40), "deeper than 64"),
        (json_grammar, {"enum": list(range(5001))}, "more than 5000 elements"),
        (json_grammar, {"enum": ["x" * 300_000]}, "more than 262144 bytes"),
        (json_grammar, {"pattern": "x" * 5000}, "5000 characters"),
        (json_grammar, "{", "no valid JSON"),
        (json_grammar, [], "is a JSON object"),
        (regex_grammar, "x" * 5000, "at most 4096"),
        (choice_grammar, [], "not empty"),
        (choice_grammar, ["a", ""], "not empty"),
        (choice_grammar, ["a"] * 5001, "too many"),
        (text_grammar, "x" * 70_000, "at most 65536"),
        (text_grammar, "root ::= (", "no GBNF"),
    ],
)
def test_what_is_out_of_bounds_is_refused(build, value, problem):
    with pytest.raises(InvalidGrammar, match=problem):
        build(value)


@pytest.mark.parametrize(
    ("grammar", "problem"),
    [
        (json_grammar({"type": "colour"}), "colour"),
        (json_grammar({"if": {}, "type": "object"}), "if"),
        (regex_grammar("a(b"), "unclosed group"),
        (text_grammar("start: nobody"), "nobody"),
    ],
)
def test_problems_are_named(grammar, problem):
    assert problem in problem_of(grammar)


@pytest.mark.parametrize(
    "grammar",
    [
        json_grammar(nested(30)),
        json_grammar('{"enum": ["a"]}'),
        json_grammar({"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}}),
        regex_grammar("(a{1,500}){1,500}b{1,900}"),
        choice_grammar(['quo"te', "line\nbreak", "\u00fc"]),
    ],
)
def test_what_is_within_bounds_compiles_quickly(grammar):
    started = time.perf_counter()
    assert problem_of(grammar) == ""
    assert time.perf_counter() - started < 1
