"""Ends connections whose clients leave their answers unread."""

import asyncio
import logging

logger = logging.getLogger(__name__)


class ReaderWatch:
    """Of one connection: runs while writing is paused, when nothing is added to the buffer.

    So a buffer that is no smaller after ``seconds`` belongs to a client that reads nothing; one
    that reads slowly is left alone.
    """

    __slots__ = ("_seconds", "_timer", "_transport")

    def __init__(self, transport: asyncio.Transport, *, seconds: float) -> None:
        self._transport = transport
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        unread = self._transport.get_write_buffer_size()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._seconds, self._look, unread)

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, before: int) -> None:
        if self._transport.get_write_buffer_size() < before:
            self.begin()
            return
        logger.info("a client left its answer unread for %g s", self._seconds)
        self._transport.abort()
