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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._resources:
            try:
                await super().__call__(scope, receive, send)
            finally:
                await self._events.aclose()


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
        try:
            if chunks := self._chunks(first, opened):
                yield chunks
            async for delta in rest:
                if chunks := self._chunks(delta, opened):
                    yield chunks
            self.record.succeed()
            yield self._closing()
        except Exception as error:
            self.record.fail(error)
            mapped = http_error(error)
            is_unexpected = mapped.code == INTERNAL_ERROR
            logger.warning("a stream ended early: %s", mapped.code, exc_info=is_unexpected)
            yield _event(mapped.body())

    def _chunks(self, delta: Delta, opened: set[int]) -> bytes:
        self.usage.add(delta)
        choices = []
        extra = {} if opened else self.opening
        if delta.index not in opened:
            opened.add(delta.index)
            choices.append(self.shape.opening(delta.index))
        choices.append(self.shape.delta(delta))
        chunks = []
        for choice in choices:
            if choice is not None:
                chunks.append(self._chunk([choice], extra))
                extra = {}
        return b"".join(chunks)

    def _chunk(self, choices: list[dict[str, Any]], extra: Mapping[str, Any]) -> bytes:
        chunk = {**self.envelope, **extra, "choices": choices}
        if self.options.continuous_usage_stats:
            chunk["usage"] = self.usage.as_json()
        elif self.options.include_usage:
            chunk["usage"] = None
        return _event(chunk)

    def _closing(self) -> bytes:
        if not self.options.include_usage:
            return _DONE
        return _event({**self.envelope, "choices": [], "usage": self.usage.as_json()}) + _DONE


def _event(content: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(content) + b"\n\n"
