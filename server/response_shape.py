"""Answers as ``response`` objects, whole and as the events of a stream."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from multiflora.engine.request import FinishReason
from multiflora.engine.text.tool_calls.call import CallReader, Reading

from .errors import INTERNAL_ERROR, http_error
from .generation import Delta
from .metrics import RequestRecord
from .response_item import Event, ResponseItems
from .schemas.response import ResponseBody
from .usage import UsageCount

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class ResponseShape:
    """``response`` objects; there is one choice."""

    body: ResponseBody
    make_reader: Callable[[], CallReader] | None = None
    id_prefix: str = "resp"
    kind: str = "response"
    chunk_kind: str = "response"
    _reader: CallReader | None = field(default=None, init=False)

    def fields(self, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
        return {}

    def choice(self, whole: Delta) -> dict[str, Any]:
        items = ResponseItems()
        items.push(self.read(whole))
        is_cut = whole.finish_reason is FinishReason.LENGTH
        items.close(status="incomplete" if is_cut else "completed")
        return {"items": items.items, "is_cut": is_cut}

    def opening(self, index: int) -> dict[str, Any] | None:
        return None

    def delta(self, delta: Delta) -> dict[str, Any] | None:
        return None

    def document(
        self,
        envelope: Mapping[str, Any],
        choices: Sequence[Mapping[str, Any]],
        usage: Mapping[str, Any],
    ) -> dict[str, Any]:
        (choice,) = choices
        return self.response(
            envelope, items=choice["items"], usage=usage, is_cut=choice["is_cut"], is_over=True
        )

    def response(
        self,
        envelope: Mapping[str, Any],
        *,
        items: Sequence[Mapping[str, Any]] = (),
        usage: Mapping[str, Any] | None = None,
        is_cut: bool = False,
        is_over: bool = False,
        error: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The object at any time of its making."""
        status = "incomplete" if is_cut else "completed" if is_over else "in_progress"
        body = self.body
        return {
            "id": envelope["id"],
            "object": "response",
            "created_at": envelope["created"],
            "model": envelope["model"],
            "system_fingerprint": envelope["system_fingerprint"],
            "status": "failed" if error else status,
            "error": error,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata,
            "output": items,
            "parallel_tool_calls": body.parallel_tool_calls,
            "previous_response_id": None,
            "store": False,
            "temperature": body.temperature,
            "text": body.text.model_dump(by_alias=True, exclude_none=True),
            "tool_choice": body.tool_choice,
            "tools": body.tools,
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": usage and _usage(usage),
        }

    def read(self, delta: Delta) -> Reading:
        """Tell calls from content."""
        if self.make_reader is None:
            return Reading(delta.text)
        self._reader = self._reader or self.make_reader()
        reading = self._reader.push(delta.text)
        if delta.finish_reason is not None:
            rest = self._reader.finish()
            reading = Reading(reading.content + rest.content, reading.calls + rest.calls)
        return reading


class ResponseWriter:
    """Writes the events of one response."""

    def __init__(
        self,
        shape: ResponseShape,
        *,
        envelope: Mapping[str, Any],
        usage: UsageCount,
        record: RequestRecord,
    ) -> None:
        self._shape = shape
        self._envelope = envelope
        self._usage = usage
        self._record = record
        self._items = ResponseItems()
        self._number = 0

    async def events(self, first: Delta, rest: AsyncIterator[Delta]) -> AsyncGenerator[bytes]:
        """All events of the stream; an error becomes the last of them."""
        try:
            started = self._shape.response(self._envelope)
            kinds = ("response.created", "response.in_progress")
            yield self._written([{"type": kind, "response": started} for kind in kinds])
            last = first
            yield self._written(self._take(first))
            async for last in rest:
                if events := self._take(last):
                    yield self._written(events)
            self._record.succeed()
            yield self._written(self._end(is_cut=last.finish_reason is FinishReason.LENGTH))
        except Exception as error:
            self._record.fail(error)
            mapped = http_error(error)
            is_unexpected = mapped.code == INTERNAL_ERROR
            logger.warning("a stream ended early: %s", error, exc_info=is_unexpected)
            yield self._written([self._failure(mapped.body()["error"])])

    def _take(self, delta: Delta) -> list[Event]:
        self._usage.add(delta)
        return self._items.push(self._shape.read(delta))

    def _end(self, *, is_cut: bool) -> list[Event]:
        status = "incomplete" if is_cut else "completed"
        events = self._items.close(status=status)
        response = self._shape.response(
            self._envelope,
            items=self._items.items,
            usage=self._usage.as_json(),
            is_cut=is_cut,
            is_over=True,
        )
        return [*events, {"type": f"response.{status}", "response": response}]

    def _failure(self, error: Mapping[str, Any]) -> Event:
        shown = {"code": error["code"], "message": error["message"]}
        response = self._shape.response(self._envelope, items=self._items.items, error=shown)
        return {"type": "response.failed", "response": response}

    def _written(self, events: Sequence[Event]) -> bytes:
        lines = []
        for event in events:
            numbered = {**event, "sequence_number": self._number}
            self._number += 1
            kind = event["type"].encode()
            lines.append(b"event: " + kind + b"\ndata: " + orjson.dumps(numbered) + b"\n\n")
        return b"".join(lines)


def _usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }
