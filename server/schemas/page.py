"""One page of a list, as OpenAI's client reads it."""

from collections.abc import Sequence
from typing import Any


def page_object(data: Sequence[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """``data`` are objects with an ``id``; the last one's is the next page's ``after``."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }
