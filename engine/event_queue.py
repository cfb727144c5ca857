"""The events of one request on their way to its reader; what a slow one missed becomes one."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from .request import FinishReason, TokenEvent

# From so many on they are joined: a list of tokens takes less room than a list of events.
_MAX_EVENTS: Final = 64
_BROKEN: Final = (FinishReason.ERROR, FinishReason.ABORT)


class EventQueue:
    """For one reader, on one event loop. Holds what was not read, and no more than its tokens."""

    __slots__ = ("_events", "_waiter")

    def __init__(self) -> None:
        self._events: list[TokenEvent] = []
        self._waiter: asyncio.Future[None] | None = None

    @property
    def num_events(self) -> int:
        """Events that were not read, as they are kept."""
        return len(self._events)

    def put(self, event: TokenEvent) -> None:
        self._events.append(event)
        if len(self._events) >= _MAX_EVENTS:
            self._events = _joined_all(self._events)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self) -> TokenEvent:
        """All tokens that came since the last call, at least one event; an error comes alone."""
        if not self._events:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if len(self._events) == 1:
            return self._events.pop()
        first, *rest = _joined_all(self._events)
        self._events = rest
        return first


def _joined_all(events: Sequence[TokenEvent]) -> list[TokenEvent]:
    """As few as say the same: an end that brings no token is no end of the token before it."""
    joined: list[TokenEvent] = []
    start = 0
    for place, event in enumerate(events):
        is_apart = event.finish_reason is not None and (
            event.finish_reason in _BROKEN or not event.tokens
        )
        if is_apart:
            joined += _joined(events[start:place])
            joined.append(event)
            start = place + 1
    return [*joined, *_joined(events[start:])]


def _joined(events: Sequence[TokenEvent]) -> list[TokenEvent]:
    if len(events) < 2:
        return list(events)
    return [
        replace(
            events[-1],
            tokens=tuple(token for event in events for token in event.tokens),
            scores=tuple(score for event in events for score in event.scores),
            prompt_scores=tuple(score for event in events for score in event.prompt_scores),
        )
    ]
