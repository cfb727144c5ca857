"""A page that many may ask for at once, and often: it is made once for all of them."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

# Whoever asks this often has a page this old anyway.
_STALE_SECONDS: Final = 1.0
_PATIENCE_SECONDS: Final = 0.005


class CachedPage:
    """The page is at most ``fresh_seconds`` old, or, while it cannot be made anew at once because
    the engine is in a long step, at most a second; only who finds it older waits for the new one.
    """

    def __init__(
        self,
        make: Callable[[], Awaitable[bytes]],
        *,
        fresh_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make = make
        self._fresh_seconds = fresh_seconds
        self._clock = clock
        self._content = b""
        self._made = float("-inf")
        self._making: asyncio.Task[None] | None = None

    async def get(self) -> bytes:
        age = self._clock() - self._made
        if age < self._fresh_seconds:
            return self._content
        if self._making is None or self._making.done():
            self._making = asyncio.create_task(self._renew())
        if age < max(_STALE_SECONDS, self._fresh_seconds):
            await asyncio.wait([self._making], timeout=_PATIENCE_SECONDS)
        else:
            await asyncio.shield(self._making)
        return self._content

    async def _renew(self) -> None:
        began = self._clock()
        self._content = await self._make()
        self._made = began
