"""How long a client waits for its answer, and the end of work that nobody waits for any more."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final, TypeVar

from starlette.datastructures import Headers

from multiflora.engine.errors import RequestRejected

from .refusal import DeadlineExceeded

TIMEOUT_HEADER: Final = "x-request-timeout-ms"
_MOST_MILLISECONDS: Final = 24 * 3600 * 1000
_Item = TypeVar("_Item")


def timeout_of(headers: Headers, *, default: float | None) -> float | None:
    """Seconds; None waits for ever. Raises ``RequestRejected`` for a header that is no time."""
    text = headers.get(TIMEOUT_HEADER)
    if text is None:
        return default
    if not text.isdecimal() or len(text) > 9 or not 0 < int(text) <= _MOST_MILLISECONDS:
        raise RequestRejected(
            f"{TIMEOUT_HEADER} is {text[:20]!r}; it must be 1 to {_MOST_MILLISECONDS} milliseconds",
            param=TIMEOUT_HEADER,
        )
    given = int(text) / 1000
    return given if default is None else min(given, default)


def until_deadline(
    items: AsyncGenerator[_Item], timeout_seconds: float | None
) -> AsyncGenerator[_Item]:
    """The same items until the time is up; then ``DeadlineExceeded``, and ``items`` is closed."""
    if timeout_seconds is None:
        return items
    return _until(items, asyncio.get_running_loop().time() + timeout_seconds, timeout_seconds)


async def _until(
    items: AsyncGenerator[_Item], deadline: float, timeout_seconds: float
) -> AsyncGenerator[_Item]:
    async with aclosing(items):
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    item = await anext(items)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise DeadlineExceeded(
                    f"the answer was not finished within {timeout_seconds:g} s"
                ) from None
            yield item
