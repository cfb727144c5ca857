"""Texts beside the event loop: large ones delay large ones alone, and not for ever."""

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from multiflora.server.refusal import QueueFull
from multiflora.server.text_work import TextWork

pytestmark = pytest.mark.anyio
SMALL, MEDIUM, LARGE = 1 << 10, 1 << 16, 8 << 20


@pytest.fixture
async def gate() -> AsyncIterator[threading.Event]:
    """What large work waits for; open at the end."""
    event = threading.Event()
    yield event
    event.set()


async def test_only_small_work_is_done_on_the_event_loop() -> None:
    work = TextWork(num_cores=1)
    here = threading.current_thread()

    assert await work.run(SMALL, threading.current_thread) is here
    assert await work.run(MEDIUM, threading.current_thread) is not here
    with pytest.raises(ValueError, match="invalid literal"):
        await work.run(MEDIUM, int, "x")


async def test_a_large_text_delays_no_smaller_one(gate: threading.Event) -> None:
    work = TextWork(num_cores=1)
    first = asyncio.create_task(work.run(LARGE, gate.wait))
    second = asyncio.create_task(work.run(LARGE, str, "second"))

    assert await work.run(MEDIUM, str, "between") == "between"
    await asyncio.sleep(0.01)
    assert not first.done()
    assert not second.done()
    gate.set()
    assert await asyncio.gather(first, second) == [True, "second"]


async def test_who_would_wait_too_long_is_refused_until_there_is_room(
    gate: threading.Event,
) -> None:
    work = TextWork(num_cores=1)
    running = [asyncio.create_task(work.run(LARGE, gate.wait)) for _ in range(3)]
    await asyncio.sleep(0)

    with pytest.raises(QueueFull, match="too much text") as refused:
        await work.run(LARGE, str)
    assert refused.value.retry_after_seconds == pytest.approx(8)
    assert await work.run(MEDIUM, str, "small") == "small"
    gate.set()
    await asyncio.gather(*running)
    assert await work.run(LARGE, str, "again") == "again"


async def test_work_that_nobody_waits_for_any_more_leaves_its_place(gate: threading.Event) -> None:
    work = TextWork(num_cores=1)
    running = [asyncio.create_task(work.run(LARGE, gate.wait)) for _ in range(3)]
    await asyncio.sleep(0)
    for task in running[1:]:
        task.cancel()
    await asyncio.gather(*running[1:], return_exceptions=True)

    next_one = asyncio.create_task(work.run(LARGE, str, "next"))
    gate.set()
    assert await next_one == "next"
