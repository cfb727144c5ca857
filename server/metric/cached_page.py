"""A page that many may ask for at once, and often: it is made once for all of them."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

# Whoever asks this often has a page this old anyway.
_STALE_SECONDS: Final = 1.0
_STALE_PERIODS: Final = 5
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
        self._stale_seconds = min(_STALE_SECONDS, _STALE_PERIODS * fresh_seconds)
        self._clock = clock
        self._content = b""
        self._made = float("-inf")
        self._making: asyncio.Task[None] | None = None

    async def get(self) -> bytes:
        age = self._clock() - self._made
        if age < self._fresh_seconds:
            return self._content
        if age < self._stale_seconds:
            await asyncio.wait([self._task()], timeout=_PATIENCE_SECONDS)
        else:
            await asyncio.shield(self._task())
        return self._content

    async def get_new(self) -> bytes:
        """The page as things are after this call, whatever is kept."""
        if self._making is not None and not self._making.done():
            await asyncio.shield(self._making)
        await asyncio.shield(self._task())
        return self._content

    def _task(self) -> "asyncio.Task[None]":
        if self._making is None or self._making.done():
            self._making = asyncio.create_task(self._renew())
        return self._making

    async def _renew(self) -> None:
        began = self._clock()
        self._content = await self._make()
        self._made = began
