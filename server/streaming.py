"""Answers as server-sent events: orjson dicts in a plain response, since a token is hot."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final

import orjson
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from .answer_shape import AnswerShape
from .body_writer import BodyWriter, body_writer_of
from .errors import INTERNAL_ERROR, http_error
from .generation import Delta
from .metrics import RequestRecord
from .schemas.sampling import StreamOptions
from .usage import UsageCount

logger = logging.getLogger(__name__)

_DONE: Final = b"data: [DONE]\n\n"


class EventStream(StreamingResponse):
    """Owns what the stream holds (lease, engine request) and lets go of it however it ends."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        *,
        resources: AsyncExitStack,
        headers: Mapping[str, str],
    ) -> None:
        unbuffered = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, headers={**unbuffered, **headers})
        self._events = events
        self._resources = resources
        self._writer: BodyWriter | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._writer = body_writer_of(scope)
        async with self._resources:
            try:
                await super().__call__(scope, receive, send)
            finally:
                await self._events.aclose()

    async def stream_response(self, send: Send) -> None:
        if self._writer is None:
            await super().stream_response(send)
            return
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        async for chunk in self._events:
            if not await self._writer.write(chunk):
                return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkWriter:
    """Writes the deltas of one answer.

    ``envelope`` holds the fields that all chunks share, ``opening`` those of the first alone.
    """

    envelope: Mapping[str, Any]
    opening: Mapping[str, Any]
    shape: AnswerShape
    options: StreamOptions
    usage: UsageCount
    record: RequestRecord

    async def events(self, first: Delta, rest: AsyncIterator[Delta]) -> AsyncGenerator[bytes]:
        """All events of the stream; an error becomes the last of them."""
        opened: set[int] = set()
        head = _open_event(self.envelope)
        try:
            if chunks := self._opening(first, head, opened):
                yield chunks
            async for delta in rest:
                if delta.index in opened:
                    chunks = self._continued(delta, head)
                else:
                    chunks = self._opening(delta, head, opened)
                if chunks:
                    yield chunks
            self.record.succeed()
            yield self._closing()
        except Exception as error:
            self.record.fail(error)
            mapped = http_error(error)
            is_unexpected = mapped.code == INTERNAL_ERROR
            logger.warning("a stream ended early: %s", mapped.code, exc_info=is_unexpected)
            yield _event(mapped.body())

    def _opening(self, delta: Delta, head: bytes, opened: set[int]) -> bytes:
        """The first chunks of a choice."""
        self.usage.add(delta)
        extended = head if opened else _open_event({**self.envelope, **self.opening})
        opened.add(delta.index)
        choices = (self.shape.opening(delta.index), self.shape.delta(delta))
        chunks = []
        for choice in choices:
            if choice is not None:
                chunks.append(self._chunk(choice, extended))
                extended = head
        return b"".join(chunks)

    def _continued(self, delta: Delta, head: bytes) -> bytes:
        self.usage.add(delta)
        choice = self.shape.delta(delta)
        return b"" if choice is None else self._chunk(choice, head)

    def _chunk(self, choice: Mapping[str, Any], head: bytes) -> bytes:
        """``head`` is all that comes before the choices; only what changes is written anew."""
        usage = b""
        if self.options.continuous_usage_stats:
            usage = b',"usage":' + orjson.dumps(self.usage.as_json())
        elif self.options.include_usage:
            usage = b',"usage":null'
        return b"%b[%b]%b}\n\n" % (head, orjson.dumps(choice), usage)

    def _closing(self) -> bytes:
        if not self.options.include_usage:
            return _DONE
        return _event({**self.envelope, "choices": [], "usage": self.usage.as_json()}) + _DONE


def _open_event(envelope: Mapping[str, Any]) -> bytes:
    """An event up to the value of its last field, which is ``choices``."""
    return b"data: " + orjson.dumps(envelope)[:-1] + b',"choices":'


def _event(content: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(content) + b"\n\n"
