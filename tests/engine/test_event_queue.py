"""A reader gets every token once and in order, in as few events as it looks."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiflora.engine.event_queue import EventQueue
from multiflora.engine.request import FinishReason, TokenEvent, TokenScore


def event(*tokens: int, reason: FinishReason | None = None) -> TokenEvent:
    scores = tuple(TokenScore(-float(token)) for token in tokens)
    return TokenEvent(
        request_id="r",
        tokens=tokens,
        scores=scores,
        finish_reason=reason,
        cached_tokens=len(tokens),
    )


async def read(queue: EventQueue, until: FinishReason) -> list[TokenEvent]:
    found: list[TokenEvent] = []
    while not found or found[-1].finish_reason is not until:
        found.append(await queue.get())
    return found


@given(
    sizes=st.lists(st.integers(0, 3), max_size=200),
    looks=st.lists(st.integers(0, 20), max_size=20),
    reason=st.sampled_from(FinishReason),
    last=st.integers(0, 1),
)
def test_all_tokens_come_once_and_in_order(
    sizes: Sequence[int], looks: Sequence[int], reason: FinishReason, last: int
) -> None:
    async def scenario() -> None:
        queue, wanted, found = EventQueue(), list[int](), list[TokenEvent]()
        turns = iter(looks)
        pause = next(turns, None)
        for size in sizes:
            tokens = tuple(range(len(wanted), len(wanted) + size))
            wanted.extend(tokens)
            queue.put(event(*tokens))
            if pause == 0:
                found.append(await queue.get())
                pause = next(turns, None)
            elif pause is not None:
                pause -= 1
        end = tuple(range(len(wanted), len(wanted) + last))
        queue.put(event(*end, reason=reason))
        found += await read(queue, reason)
        assert [token for one in found for token in one.tokens] == [*wanted, *end]
        assert all(len(one.scores) == len(one.tokens) for one in found)
        # An end without a token must not make the token before it the end.
        assert found[-1].tokens[-1:] == end or not end

    asyncio.run(scenario())


def test_what_a_slow_reader_missed_is_one_event_and_takes_the_room_of_its_tokens() -> None:
    async def scenario() -> None:
        queue = EventQueue()
        for token in range(10_000):
            queue.put(event(token))
            assert queue.num_events < 64
        queue.put(event(10_000, reason=FinishReason.LENGTH))
        (only,) = await read(queue, FinishReason.LENGTH)
        assert only.tokens == tuple(range(10_001))
        assert only.cached_tokens == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("reason", [FinishReason.ERROR, FinishReason.ABORT])
def test_an_error_comes_after_the_tokens_before_it(reason: FinishReason) -> None:
    async def scenario() -> None:
        queue = EventQueue()
        for one in (event(1), event(2), event(reason=reason)):
            queue.put(one)
        first, last = await read(queue, reason)
        assert first.tokens == (1, 2)
        assert first.finish_reason is None
        assert last.tokens == ()

    asyncio.run(scenario())


def test_a_reader_waits_for_what_is_to_come() -> None:
    async def scenario() -> None:
        queue = EventQueue()
        waiting = asyncio.create_task(queue.get())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        queue.put(event(1))
        assert (await queue.get()).tokens == (1,)

    asyncio.run(scenario())
