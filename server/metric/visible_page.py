"""A page of metrics as one tenant may see it: without the names of others' adapters."""

import re
from collections.abc import Collection
from typing import Final

from .board import OTHER

_ADAPTER: Final = re.compile(rb'[{,]adapter="([^"]*)"')
_LISTS: Final = re.compile(rb'(_lora_adapters=")([^"]*)(")')


def visible_page(page: bytes, names: Collection[str]) -> bytes:
    """The lines of ``page`` that are about no adapter, about ``names``, or about all others as one.

    Routers' lists of adapters keep ``names`` only.
    """
    seen = {name.encode() for name in (*names, OTHER)}
    return b"\n".join(_visible(line, seen) for line in page.split(b"\n") if _is_seen(line, seen))


def _is_seen(line: bytes, seen: set[bytes]) -> bool:
    found = _ADAPTER.search(line)
    return found is None or found[1] in seen


def _visible(line: bytes, seen: set[bytes]) -> bytes:
    if b"_lora_adapters=" not in line:
        return line

    def keep(found: re.Match[bytes]) -> bytes:
        return found[1] + b",".join(n for n in found[2].split(b",") if n in seen) + found[3]

    return _LISTS.sub(keep, line)
