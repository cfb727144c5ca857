"""Hooks of schemathesis: real names among the made-up ones, so that requests get past the door.

``KNOWN_VALUES`` is a JSON object of field names and their values. Three in four generated values of
such a field are replaced, by a rule that depends on the request alone.
"""

import json
import os
import zlib
from typing import Any, Final

import schemathesis  # pyright: ignore[reportMissingImports]

TIMEOUT, PATIENCE = "x-request-timeout-ms", "60000"
KNOWN: Final[dict[str, list[str]]] = json.loads(os.environ["KNOWN_VALUES"])


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    return _with_known(body, _number(body))


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: Any) -> Any:
    return _with_known(path_parameters, _number(path_parameters))


@schemathesis.hook
def map_query(context: Any, query: Any) -> Any:
    return _with_known(query, _number(query))


@schemathesis.hook
def map_headers(context: Any, headers: Any) -> Any:
    """A client that waits for a millisecond asks for its 504, which is no error of the server."""
    waits = str((headers or {}).get(TIMEOUT, ""))
    return {**headers, TIMEOUT: PATIENCE} if waits.isdecimal() and int(waits) else headers


def _number(value: Any) -> int:
    return zlib.crc32(repr(value).encode(errors="replace"))


def _with_known(value: Any, number: int) -> Any:
    if isinstance(value, list):
        return [_with_known(item, number) for item in value]
    if not isinstance(value, dict):
        return value
    return {name: _known(name, item, number) for name, item in value.items()}


def _known(name: str, value: Any, number: int) -> Any:
    choices = KNOWN.get(name)
    if choices and isinstance(value, str) and number % 4:
        return choices[number // 4 % len(choices)]
    return _with_known(value, number)
