"""uvicorn's HTTP/1.1 connections, with an end for clients that neither send nor read on."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final, cast

import h11
import orjson
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from .body_writer import with_body_writer
from .errors import http_error
from .limits import Limits
from .reader_watch import ReaderWatch
from .request_connection import MalformedRequest, RequestConnection

_HEADER_BYTES: Final = 64 * 1024
_BUSY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\n"
    b"content-length: 0\r\n\r\n"
)


def bounded_protocol(limits: Limits) -> Callable[..., asyncio.Protocol]:
    """The protocol of one connection, as uvicorn makes it."""
    return partial(BoundedProtocol, limits=limits)


class BoundedProtocol(H11Protocol):
    """Headers come within ``header_seconds``; connections above the bound are turned away.

    The time runs from the first byte of a request, and from the connection itself, to the end
    of the headers. What follows is bounded by ``RequestLimitMiddleware``. A client that reads
    nothing for ``stall_seconds`` is disconnected, which ends its request's work.
    """

    _late: asyncio.TimerHandle | None = None
    _reader: ReaderWatch

    def __init__(self, *arguments: Any, limits: Limits, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._limits = limits
        self.conn = RequestConnection(self.config.h11_max_incomplete_event_size or _HEADER_BYTES)
        self.app = with_body_writer(cast(ASGIApp, self.app))

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._reader = ReaderWatch(transport, seconds=self._limits.stall_seconds)
        if len(self.connections) > self._limits.max_connections:
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
        self._reader.end()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader.begin()

    def resume_writing(self) -> None:
        self._reader.end()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse in the API's own envelope what is no request, unless an answer has begun."""
        connection = cast(RequestConnection, self.conn)
        if connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            error = http_error(connection.fault or MalformedRequest(msg))
            body = orjson.dumps(error.body())
            self.transport.write(
                b"HTTP/1.1 %d Refused\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\nconnection: close\r\n\r\n%b"
                % (error.status, len(body), body)
            )
        self.transport.close()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        # Closing waits for the reader of what is left.
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def _await_headers(self) -> None:
        self._late = self.loop.call_later(self._limits.header_seconds, self._give_up)

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        self._late = None
        if not self.transport.is_closing():
            self.transport.close()
