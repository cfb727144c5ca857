"""Tells clients which fields of their request nobody knows, instead of refusing or hiding them."""

import re
from collections.abc import Iterator
from typing import Final

from pydantic import BaseModel

from multiflora.engine.log_line import request_id

from .errors import UnknownParameter

_MAX_NAMES: Final = 32
_MAX_NAME_CHARS: Final = 64
_HARMFUL: Final = re.compile(r"[^A-Za-z0-9_.-]")


def ignored_header(body: BaseModel) -> dict[str, str]:
    """``x-ignored-fields``, with dotted paths; none if every field is known."""
    names = [_harmless(name) for name, _ in zip(_ignored(body), range(_MAX_NAMES), strict=False)]
    return {"x-ignored-fields": ",".join(names)} if names else {}


def check_body(body: BaseModel, *, is_strict: bool) -> None:
    """Take the name that a body gives its request, and refuse what nobody knows if ``is_strict``.

    Raises ``UnknownParameter`` with the first of the fields.
    """
    if named := getattr(body, "request_id", None):
        request_id.set(named)
    if is_strict and (name := next(_ignored(body), None)) is not None:
        shown = _harmless(name)
        raise UnknownParameter(f"unknown field {shown!r}; this server refuses them", param=shown)


def _ignored(body: BaseModel, prefix: str = "") -> Iterator[str]:
    for name in body.model_extra or ():
        yield prefix + name
    for name in type(body).model_fields:
        value = getattr(body, name)
        if isinstance(value, BaseModel):
            yield from _ignored(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            for place, item in enumerate(value):
                if isinstance(item, BaseModel):
                    yield from _ignored(item, f"{prefix}{name}.{place}.")


def _harmless(name: str) -> str:
    return _HARMFUL.sub("?", name[:_MAX_NAME_CHARS])
