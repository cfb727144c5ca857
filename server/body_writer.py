"""Pieces of a streamed answer straight to their connection: each costs what a token costs."""

from typing import Any, Final, cast

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import RequestResponseCycle

_KEY: Final = "multiflora.body_writer"


class BodyWriter:
    """Writes chunks of an HTTP/1.1 answer without a length, after its headers were sent.

    Past all middleware, which sees the headers and the end, and past h11, whose state no chunk
    changes. A reader that is slow is waited for.
    """

    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    async def write(self, body: bytes) -> bool:
        """Whether the client is there. An empty chunk would be the end, so none is written."""
        cycle = self._cycle
        if cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        if cycle.disconnected:
            return False
        if body:
            cycle.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        return True


def with_body_writer(app: ASGIApp) -> ASGIApp:
    """``app`` on a uvicorn h11 connection, its requests with a `BodyWriter` where chunks work."""

    async def called(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["http_version"] == "1.1" and scope["method"] != "HEAD":
            scope[_KEY] = BodyWriter(cast(Any, send).__self__)
        await app(scope, receive, send)

    return called


def body_writer_of(scope: Scope) -> BodyWriter | None:
    return scope.get(_KEY)
