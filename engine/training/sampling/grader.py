"""Graders: whether a sampled answer is good enough to be learned from.

Patterns and schemas come from clients. Both engines match in time linear in the answer, and refuse
what cannot be matched so; schemas are never fetched.
"""

from dataclasses import dataclass
from typing import Any, Final, Protocol

import jsonschema_rs
import orjson
import re2

from ...errors import RequestRejected

_MAX_PATTERN_CHARS: Final = 2048
_MAX_SCHEMA_BYTES: Final = 64 << 10
_PATTERN_MEMORY_BYTES: Final = 8 << 20


class Grader(Protocol):
    """Says whether ``answer`` passes; ``expected`` is the row's own answer, if it has one."""

    def passes(self, answer: str, expected: str | None) -> bool: ...


@dataclass(frozen=True, slots=True)
class ExactMatch:
    """Equal to the expected answer, of both what ``pattern`` extracts: its first group, the last
    time that it matches. Numbers are compared as numbers.
    """

    pattern: Any | None = None
    ignore_case: bool = False

    def passes(self, answer: str, expected: str | None) -> bool:
        found, wanted = self._extracted(answer), self._extracted(expected or "")
        if wanted is None:
            wanted = expected
        return bool(found) and bool(wanted) and _same(found, wanted)

    def _extracted(self, text: str) -> str | None:
        """None where the pattern is not found; an answer without it never passes."""
        if self.pattern is not None:
            last = None
            for match in self.pattern.finditer(text):
                last = match
            if last is None:
                return None
            text = last.group(1) if last.re.groups else last.group(0)
        text = (text or "").strip()
        return text.casefold() if self.ignore_case else text


@dataclass(frozen=True, slots=True)
class PatternMatch:
    """The pattern occurs in the answer."""

    pattern: Any

    def passes(self, answer: str, expected: str | None) -> bool:
        return self.pattern.search(answer) is not None


@dataclass(frozen=True, slots=True)
class SchemaMatch:
    """The answer is JSON, and nothing else, that the schema accepts."""

    validator: Any

    def passes(self, answer: str, expected: str | None) -> bool:
        try:
            value = orjson.loads(answer)
        except orjson.JSONDecodeError:
            return False
        return self.validator.is_valid(value)


def compile_pattern(text: str, param: str) -> Any:
    """Raises ``RequestRejected`` naming ``param`` for what RE2 cannot match in linear time."""
    if len(text) > _MAX_PATTERN_CHARS:
        raise RequestRejected(
            f"a pattern has up to {_MAX_PATTERN_CHARS} characters, this one {len(text)}",
            param=param,
        )
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _PATTERN_MEMORY_BYTES
    try:
        return re2.compile(text, options=options)
    except re2.error as error:
        detail = error.args[0] if error.args else ""
        shown = detail.decode("utf-8", "replace") if isinstance(detail, bytes) else detail
        raise RequestRejected(
            f"{shown}; patterns are RE2's, which has no backreferences and no lookaround",
            param=param,
        ) from None


def compile_schema(schema: dict[str, Any], param: str) -> SchemaMatch:
    """Raises ``RequestRejected`` naming ``param`` for a schema that is none or refers elsewhere."""
    if len(orjson.dumps(schema)) > _MAX_SCHEMA_BYTES:
        raise RequestRejected(f"a schema has up to {_MAX_SCHEMA_BYTES} bytes", param=param)
    try:
        validator = jsonschema_rs.validator_for(
            schema, retriever=_refuse_fetching, pattern_options=jsonschema_rs.RegexOptions()
        )
    except (ValueError, jsonschema_rs.ReferencingError) as error:
        raise RequestRejected(str(error).partition("\n")[0][:500], param=param) from None
    return SchemaMatch(validator)


def _refuse_fetching(uri: str) -> Any:
    raise ValueError(f"{uri[:200]} is elsewhere; write what it says into the schema")


def _same(answer: str, expected: str) -> bool:
    if answer == expected:
        return True
    left, right = _number(answer), _number(expected)
    return left is not None and left == right


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", "").removeprefix("$"))
    except ValueError:
        return None
