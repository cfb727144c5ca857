"""uvicorn's HTTP/1.1 connections, with an end for clients that never finish their headers."""

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from .limits import Limits

_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\n"
    b"content-length: 0\r\n\r\n"
)


def bounded_protocol(limits: Limits) -> Callable[..., asyncio.Protocol]:
    """The protocol of one connection, as uvicorn makes it."""

    class BoundedProtocol(H11Protocol):
        """Headers come within ``header_seconds``; connections above the bound are turned away.

        The time runs from the first byte of a request, and from the connection itself, to the end
        of the headers. What follows is bounded by ``RequestLimitMiddleware``.
        """

        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > limits.max_connections:
                transport.write(_BUSY)
                transport.close()
                return
            self._await_headers()

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            is_idle = before is None or before.response_complete
            if is_idle and self._late is None:
                self._await_headers()
            super().data_received(data)
            if self.cycle is not before:
                self._forget()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def _await_headers(self) -> None:
            self._late = self.loop.call_later(limits.header_seconds, self._give_up)

        def _forget(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

        def _give_up(self) -> None:
            self._late = None
            if not self.transport.is_closing():
                self.transport.close()

    return BoundedProtocol
