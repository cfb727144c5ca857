"""From the bytes of a request body to a checked model, or to one clear error."""

import difflib
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from multiflora.engine.errors import RequestRejected

from ..errors import UnknownParameter, UnsupportedParameter

MAX_DEPTH: Final = 64
_MAX_NAME_CHARS: Final = 64
_STRUCTURE: Final = re.compile(rb'[\[\]{}]|"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)


class MalformedBody(RequestRejected):
    """A body that is not a JSON object."""

    code = "invalid_json"


class RequestBody(BaseModel):
    """A request of OpenAI's API.

    ``IGNORED`` fields change nothing about the answer. ``UNSUPPORTED`` fields are accepted with the
    values given here, which ask for nothing. A kind that allows extra fields keeps those that
    nobody knows; all others refuse them.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    IGNORED: ClassVar[frozenset[str]] = frozenset()
    UNSUPPORTED: ClassVar[Mapping[str, tuple[Any, ...]]] = {}


Body = TypeVar("Body", bound=RequestBody)


def parse_body(raw: bytes, kind: type[Body]) -> Body:
    """Parse and check a body. Raises ``RequestRejected`` naming the first offending field."""
    return check_fields(_json_object(raw), kind)


def check_fields(fields: Mapping[str, Any], kind: type[Body]) -> Body:
    """Check the fields of a JSON object. Raises ``RequestRejected`` as ``parse_body`` does."""
    known = {
        name: value
        for name, value in fields.items()
        if value is not None and _is_wanted(name, value, kind)
    }
    try:
        return kind.model_validate(known)
    except ValidationError as error:
        raise _first_error(error) from None


def _json_object(raw: bytes) -> dict[str, Any]:
    check_depth(raw)
    try:
        fields = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise MalformedBody(f"the request body is not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise MalformedBody("the request body must be a JSON object")
    return fields


def check_depth(raw: bytes) -> None:
    """Refuse what is nested too deeply before anything walks through it. Raises ``MalformedBody``.

    Linear in the size: a string that never ends is taken to the end of the body.
    """
    depth = 0
    for found in _STRUCTURE.finditer(raw):
        mark = found.group()[:1]
        if mark in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise MalformedBody(f"the request body is nested deeper than {MAX_DEPTH} levels")
        elif mark in b"]}":
            depth -= 1


def _is_wanted(name: str, value: object, kind: type[RequestBody]) -> bool:
    if name in kind.model_fields:
        return True
    if name in kind.IGNORED:
        return False
    if name not in kind.UNSUPPORTED:
        if kind.model_config.get("extra") == "allow":
            return True
        raise _unknown(name, kind)
    if not _asks_for_nothing(name, value, kind):
        raise UnsupportedParameter(f"{name} is not supported; leave it out", param=name)
    return False


def _asks_for_nothing(name: str, value: object, kind: type[RequestBody]) -> bool:
    # bool is an int: without the types, 0 would pass for false.
    neutral = [(type(item), item) for item in kind.UNSUPPORTED[name]]
    return (type(value), value) in neutral


def _unknown(name: str, kind: type[RequestBody]) -> UnknownParameter:
    candidates = [*kind.model_fields, *kind.IGNORED, *kind.UNSUPPORTED]
    shown = name[:_MAX_NAME_CHARS]
    near = difflib.get_close_matches(shown, candidates, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UnknownParameter(f"unknown field {shown!r}{hint}", param=shown)


def _first_error(error: ValidationError) -> RequestRejected:
    """Only the first: a crafted body can make pydantic list millions."""
    num_errors = error.error_count()
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = ".".join(str(part) for part in first["loc"])[:200] or None
    message = first["msg"].removeprefix("Value error, ")
    others = f" (and {num_errors - 1} more)" if num_errors > 1 else ""
    return RequestRejected(f"{param or 'the body'}: {message}{others}"[:500], param=param)
