"""Counts running inference requests and turns new ones away while the server shuts down."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import Draining


class Drain:
    """Open until ``begin``; then it empties. ``announce`` may say before that it will."""

    def __init__(self) -> None:
        self.num_running = 0
        self.is_announced = False
        self._is_draining = False
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def is_draining(self) -> bool:
        return self._is_draining

    def announce(self) -> None:
        """Have routers send requests elsewhere; those that come are still taken."""
        self.is_announced = True

    def begin(self) -> None:
        self.is_announced = self._is_draining = True

    @contextmanager
    def running(self) -> Iterator[None]:
        """Hold while a request runs. Raises ``Draining`` once draining has begun."""
        if self._is_draining:
            raise Draining("the server is shutting down; send the request to another replica")
        self.num_running += 1
        self._empty.clear()
        try:
            yield
        finally:
            self.num_running -= 1
            if self.num_running == 0:
                self._empty.set()

    async def wait_empty(self, *, timeout_seconds: float) -> bool:
        """Wait until no request runs; whether that came about in time."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True
