"""From what clients write (schemas, regexes, choices, grammars) to llguidance's form, in bounds.

JSON is written compactly: no white space between its parts, so that no model can wander off in it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
from llguidance import LLMatcher
from llguidance.gbnf_to_lark import any_to_lark

from ..errors import RequestRejected

MAX_SCHEMA_BYTES: Final = 256 * 1024
MAX_SCHEMA_DEPTH: Final = 64
MAX_CHOICES: Final = 5000
MAX_REGEX_CHARS: Final = 4096
MAX_GRAMMAR_CHARS: Final = 64 * 1024
_COMPACT: Final = {"whitespace_flexible": False}
_MAX_PROBLEM_CHARS: Final = 500


class InvalidGrammar(RequestRejected):
    """A schema, regex or grammar that cannot be followed."""

    code = "invalid_grammar"


def json_grammar(schema: object) -> str:
    """Compact JSON that a schema, given as data or as JSON text, accepts."""
    if isinstance(schema, str | bytes):
        schema = _loads(schema)
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise InvalidGrammar("a JSON schema is a JSON object")
    check_schema(schema)
    return LLMatcher.grammar_from_json_schema(compact(schema))


def compact(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with what keeps white space out."""
    return {**schema, "x-guidance": _COMPACT}


def regex_grammar(pattern: str) -> str:
    _check_length(pattern, MAX_REGEX_CHARS, "regex")
    return LLMatcher.grammar_from_regex(pattern)


def choice_grammar(choices: Sequence[str]) -> str:
    """Exactly one of ``choices``."""
    if not choices or not all(choices):
        raise InvalidGrammar("the choices are a list of strings that are not empty")
    if len(choices) > MAX_CHOICES or sum(map(len, choices)) > MAX_SCHEMA_BYTES:
        raise InvalidGrammar(
            f"{len(choices)} choices are too many: at most {MAX_CHOICES}, of {MAX_SCHEMA_BYTES} "
            "characters together"
        )
    literals = " | ".join(quoted(choice) for choice in choices)
    return LLMatcher.grammar_from_lark(f"start: {literals}")


def text_grammar(text: str) -> str:
    """A context-free grammar in Lark's notation, or in GBNF (with ``::=``)."""
    _check_length(text, MAX_GRAMMAR_CHARS, "grammar")
    if "::=" in text:
        try:
            text = any_to_lark(text)
        except Exception as error:  # the converter raises plain Exception
            raise InvalidGrammar(f"the grammar is no GBNF: {error}"[:_MAX_PROBLEM_CHARS]) from None
    return LLMatcher.grammar_from_lark(text)


def quoted(text: str) -> str:
    """A literal of Lark's notation."""
    return orjson.dumps(text).decode()


def problem_of(grammar: str) -> str:
    """Why a grammar cannot be compiled; empty if it can. Takes milliseconds to a second."""
    return LLMatcher.validate_grammar(grammar)[:_MAX_PROBLEM_CHARS]


def check_schema(schema: object) -> None:
    """Refuse a schema before any recursive parser sees it. Raises ``InvalidGrammar``."""
    level = [schema]
    for _ in range(MAX_SCHEMA_DEPTH):
        level = [child for value in level for child in _children(value)]
        if not level:
            break
    if level:
        raise InvalidGrammar(f"the schema is nested deeper than {MAX_SCHEMA_DEPTH} levels")
    if len(orjson.dumps(schema)) > MAX_SCHEMA_BYTES:
        raise InvalidGrammar(f"the schema has more than {MAX_SCHEMA_BYTES} bytes")


def _children(value: object) -> list[Any]:
    if isinstance(value, dict):
        if isinstance(pattern := value.get("pattern"), str):
            _check_length(pattern, MAX_REGEX_CHARS, "pattern")
        return list(value.values())
    if isinstance(value, list):
        if len(value) > MAX_CHOICES:
            raise InvalidGrammar(f"a list of the schema has more than {MAX_CHOICES} elements")
        return value
    return []


def _loads(text: str | bytes) -> object:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidGrammar(f"the JSON schema is no valid JSON: {error}") from None


def _check_length(text: str, limit: int, name: str) -> None:
    if len(text) > limit:
        raise InvalidGrammar(f"the {name} has {len(text)} characters; at most {limit} are accepted")
