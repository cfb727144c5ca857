"""Runs the sequences of one HTTP request on the engine and turns their tokens into text."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from multiflora.engine.client import EngineClient
from multiflora.engine.errors import RequestFailed
from multiflora.engine.request import FinishReason, GenerationRequest, TokenEvent
from multiflora.engine.text.answer_text import AnswerText
from multiflora.engine.text.tokenizer import Tokenizer

_QUEUE_SIZE: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceJob:
    """One sequence to generate, and how its text ends."""

    index: int
    request: GenerationRequest
    stops: tuple[str, ...] = ()
    end_tokens: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """New text of one sequence; ``num_tokens`` and ``cached_tokens`` are totals so far."""

    index: int
    text: str
    num_tokens: int
    cached_tokens: int
    finish_reason: FinishReason | None = None


def generate(
    client: EngineClient, tokenizer: Tokenizer, jobs: Sequence[SequenceJob]
) -> AsyncGenerator[Delta]:
    """Run all jobs at once; their deltas come as they are made.

    Closing the generator aborts what still runs. Raises what ``EngineClient.generate`` raises.
    """
    streams = [_deltas(client, tokenizer, job) for job in jobs]
    return streams[0] if len(streams) == 1 else _merged(streams)


async def _deltas(
    client: EngineClient, tokenizer: Tokenizer, job: SequenceJob
) -> AsyncGenerator[Delta]:
    text = AnswerText(
        tokenizer,
        stops=job.stops,
        min_tokens=job.request.sampling.min_tokens,
        end_tokens=job.end_tokens,
    )
    events = client.generate(job.request)
    async with aclosing(events):
        async for event in events:
            _check(event)
            delta = _delta(job.index, text, event)
            yield delta
            if delta.finish_reason is not None:
                return
    raise RequestFailed("the engine ended the request without a reason")


def _check(event: TokenEvent) -> None:
    if event.finish_reason is FinishReason.ERROR:
        raise RequestFailed(
            event.error or "the engine failed", code=event.error_code or RequestFailed.code
        )
    if event.finish_reason is FinishReason.ABORT:
        raise RequestFailed("the request was aborted", code="aborted")


def _delta(index: int, text: AnswerText, event: TokenEvent) -> Delta:
    new_text = text.push(event.tokens, event.finish_reason)
    return Delta(
        index=index,
        text=new_text,
        num_tokens=text.num_tokens,
        cached_tokens=event.cached_tokens,
        finish_reason=FinishReason.STOP if text.is_stopped else event.finish_reason,
    )


async def _merged(streams: Sequence[AsyncGenerator[Delta]]) -> AsyncGenerator[Delta]:
    """Interleave streams. The first error of any of them ends all."""
    queue: asyncio.Queue[Delta | Exception | None] = asyncio.Queue(_QUEUE_SIZE)
    pumps = [asyncio.create_task(_pump(stream, queue)) for stream in streams]
    num_open = len(pumps)
    try:
        while num_open:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield item
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(
    stream: AsyncGenerator[Delta], queue: asyncio.Queue[Delta | Exception | None]
) -> None:
    try:
        async with aclosing(stream):
            async for delta in stream:
                await queue.put(delta)
    except Exception as error:
        await queue.put(error)
    else:
        await queue.put(None)
