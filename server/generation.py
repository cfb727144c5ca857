"""Runs the sequences of one HTTP request on the engine and turns their tokens into text."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

import msgspec

from multiflora.engine.client import EngineClient
from multiflora.engine.errors import RequestFailed
from multiflora.engine.request import (
    FinishReason,
    GenerationRequest,
    StageSeconds,
    TokenEvent,
    TokenScore,
)
from multiflora.engine.text.answer_text import AnswerText, TextRules
from multiflora.engine.text.tokenizer import Tokenizer

_QUEUE_SIZE: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceJob:
    """One sequence to generate; ``echo`` is the prompt's text if the answer begins with it."""

    index: int
    request: GenerationRequest
    rules: TextRules
    echo: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Echo:
    """An answer's prompt; the first of ``scores``, if there are any, is None."""

    tokens: tuple[int, ...] = ()
    scores: tuple[TokenScore | None, ...] = ()


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """What is new of one sequence; ``num_tokens`` and ``cached_tokens`` are totals so far.

    ``tokens`` may run ahead of ``text``, which waits for whole characters and stop strings.
    ``scores`` are as many, or none. ``echo`` and ``stages`` come with the first delta, ``text``
    begins with the echo. One is made per token, and a frozen dataclass takes ten times as long.
    """

    index: int
    text: str
    num_tokens: int
    cached_tokens: int
    finish_reason: FinishReason | None = None
    tokens: tuple[int, ...] = ()
    scores: tuple[TokenScore, ...] = ()
    echo: Echo | None = None
    stages: StageSeconds | None = None


def joined(deltas: Sequence[Delta]) -> Delta:
    """All deltas of one finished sequence as one."""
    return msgspec.structs.replace(
        deltas[-1],
        text="".join(delta.text for delta in deltas),
        tokens=tuple(token for delta in deltas for token in delta.tokens),
        scores=tuple(score for delta in deltas for score in delta.scores),
        echo=deltas[0].echo,
    )


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
    text = AnswerText(tokenizer, job.rules)
    prompt_scores: list[TokenScore] = []
    awaits_echo = job.echo is not None
    events = client.generate(job.request)
    async with aclosing(events):
        async for event in events:
            _check(event)
            prompt_scores += event.prompt_scores
            if not event.tokens and event.finish_reason is None:
                continue
            delta = _delta(job.index, text, event)
            if awaits_echo:
                delta = _with_echo(job, delta, prompt_scores)
                awaits_echo = False
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
    num_before = text.num_tokens
    new_text = text.push(event.tokens, event.finish_reason)
    # What follows a stop string is no part of the answer.
    count = text.num_tokens - num_before
    return Delta(
        index=index,
        text=new_text,
        num_tokens=text.num_tokens,
        cached_tokens=event.cached_tokens,
        finish_reason=FinishReason.STOP if text.is_stopped else event.finish_reason,
        tokens=event.tokens[:count],
        scores=event.scores[:count],
        stages=event.stages,
    )


def _with_echo(job: SequenceJob, delta: Delta, scores: Sequence[TokenScore]) -> Delta:
    has_scores = job.request.sampling.prompt_logprobs is not None
    echo = Echo(tokens=job.request.prompt, scores=(None, *scores) if has_scores else ())
    return msgspec.structs.replace(delta, text=(job.echo or "") + delta.text, echo=echo)


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
