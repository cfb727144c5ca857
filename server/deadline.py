"""How long a client waits for its answer, and the end of work that nobody waits for any more."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Final, Self, TypeVar

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


@dataclass(frozen=True, slots=True)
class Deadline:
    """``at`` is the event loop's time, ``seconds`` what was given; None both is never."""

    seconds: float | None
    at: float | None

    @classmethod
    def after(cls, seconds: float | None) -> Self:
        now = asyncio.get_running_loop().time()
        return cls(seconds, None if seconds is None else now + seconds)

    @property
    def remaining_seconds(self) -> float | None:
        """None is for ever; never below 0."""
        if self.at is None:
            return None
        return max(0.0, self.at - asyncio.get_running_loop().time())

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Cancel the block when the time is up, and raise ``DeadlineExceeded`` instead."""
        limit = asyncio.timeout_at(self.at)
        try:
            async with limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise self._exceeded() from None

    def until(self, items: AsyncGenerator[_Item]) -> AsyncGenerator[_Item]:
        """The same items until the time is up; then ``DeadlineExceeded``, and they are closed."""
        return items if self.at is None else self._until(items)

    async def _until(self, items: AsyncGenerator[_Item]) -> AsyncGenerator[_Item]:
        async with aclosing(items):
            while True:
                try:
                    async with asyncio.timeout_at(self.at):
                        item = await anext(items)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    raise self._exceeded() from None
                yield item

    def _exceeded(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"the answer was not finished within {self.seconds:g} s")
