"""Rules for texts that clients write: JSON schemas and regular expressions.

Both are checked by an engine that takes linear time, whatever the expression, and fetches nothing.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

import jsonschema_rs
import orjson

Rule = Callable[[str], bool]
_MAX_PATTERN_CHARS: Final = 2_000
_MAX_SCHEMA_CHARS: Final = 100_000


def check_pattern(pattern: str) -> Rule:
    """Whether the pattern is found in a text. Raises ``ValueError`` for one that is no pattern."""
    if len(pattern) > _MAX_PATTERN_CHARS:
        raise ValueError(f"a pattern has up to {_MAX_PATTERN_CHARS} letters, this {len(pattern)}")
    validator = _validator({"type": "string", "pattern": pattern}, f"pattern {pattern[:60]!r}")
    return validator.is_valid


def check_schema(schema: Mapping[str, Any]) -> Rule:
    """Whether a text is JSON that fits. Raises ``ValueError`` for what is no schema."""
    if len(orjson.dumps(schema)) > _MAX_SCHEMA_CHARS:
        raise ValueError(f"a schema has up to {_MAX_SCHEMA_CHARS} letters")
    validator = _validator(dict(schema), "the JSON schema")

    def fits(text: str) -> bool:
        try:
            return validator.is_valid(orjson.loads(text))
        except orjson.JSONDecodeError:
            return False

    return fits


def is_json(text: str) -> bool:
    """Whether the text is a JSON object or list; a bare word or number is no format."""
    try:
        return isinstance(orjson.loads(text), dict | list)
    except orjson.JSONDecodeError:
        return False


def _validator(schema: dict[str, Any], what: str) -> jsonschema_rs.Validator:
    try:
        return jsonschema_rs.validator_for(
            schema,
            pattern_options=jsonschema_rs.RegexOptions(size_limit=1 << 20),
            retriever=_refuse,
        )
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        raise ValueError(f"{what} is not valid: {str(error).splitlines()[0]}") from None


def _refuse(uri: str) -> NoReturn:
    raise ValueError(f"{uri} is not fetched; put what it holds into $defs")
