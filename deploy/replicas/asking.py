"""Asks replicas until one answers; knows nothing of how they are found."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final

from fastapi import Response
from fastapi.responses import StreamingResponse

from .call import Call, Head, Headers, error_body

_ATTEMPTS: Final = 4
_PAUSE_SECONDS: Final = 0.2
Ask = Callable[[Call], AsyncGenerator[Head | bytes]]
_LOST: Final = error_body(
    "the replica went away while it answered; send the request again", code="replica_lost"
)


class Asker:
    """``lost`` are the errors that say that a replica is gone; a request may then go to another.

    It does as long as the client has seen nothing of an answer: until the whole of one that is no
    stream is there, and until the first event of one that is. 503, which servers say when they
    load, drain or are about to be full, sends it on as well.
    """

    def __init__(self, ask: Ask, *, lost: tuple[type[Exception], ...]) -> None:
        self._ask = ask
        self._lost = lost

    async def answer(self, call: Call) -> Response:
        for attempt in range(_ATTEMPTS):
            if attempt:
                await asyncio.sleep(_PAUSE_SECONDS * attempt)
            parts = self._ask(call)
            try:
                response = await self._answer_of(parts)
            except self._lost:
                continue
            if response.status_code != 503 or attempt == _ATTEMPTS - 1:
                return response
        return Response(_LOST, 503, media_type="application/json", headers={"retry-after": "1"})

    async def _answer_of(self, parts: AsyncGenerator[Head | bytes]) -> Response:
        head = await anext(parts)
        assert isinstance(head, Head)
        if not head.is_stream:
            async with aclosing(parts):
                body = b"".join([part async for part in parts if isinstance(part, bytes)])
            return _with_headers(Response(body, head.status), head.headers)
        first = await anext(parts, b"")
        assert isinstance(first, bytes)
        return _with_headers(
            StreamingResponse(self._stream(first, parts), head.status), head.headers
        )

    async def _stream(
        self, first: bytes, parts: AsyncGenerator[Head | bytes]
    ) -> AsyncGenerator[bytes]:
        async with aclosing(parts):
            yield first
            try:
                async for part in parts:
                    assert isinstance(part, bytes)
                    yield part
            except self._lost:
                yield b"data: " + _LOST + b"\n\n"


def _with_headers(response: Response, headers: Headers) -> Response:
    for name, value in headers:
        response.headers[name] = value
    return response
