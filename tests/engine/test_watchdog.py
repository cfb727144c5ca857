"""A silent engine is ended; a slow or an absent one is not."""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress

import pytest

from multiflora.engine.errors import EngineUnavailable
from multiflora.engine.watchdog import watch

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def watched(ask: Callable[[], object], seconds: float) -> int:
    """How often the engine was ended in that time."""
    kills: list[None] = []
    watching = watch(
        ask,  # type: ignore[arg-type]
        lambda: kills.append(None),
        patience_seconds=0.05,
        interval_seconds=0.01,
    )
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await watching
    return len(kills)


async def test_a_silent_engine_is_ended() -> None:
    assert await watched(lambda: asyncio.sleep(60), 0.15) >= 1


async def test_an_engine_that_answers_is_left_alone() -> None:
    assert await watched(lambda: asyncio.sleep(0.001), 0.15) == 0


async def test_an_engine_that_is_not_there_is_left_to_others() -> None:
    async def ask() -> None:
        raise EngineUnavailable("starting")

    assert await watched(ask, 0.1) == 0


async def test_a_stopped_process_is_ended_by_the_kernel() -> None:
    """What ``kill`` of a process does works on one that runs no code any more."""
    process = await asyncio.create_subprocess_exec("sleep", "60")
    os.kill(process.pid, signal.SIGSTOP)
    watching = asyncio.create_task(
        watch(process.wait, process.kill, patience_seconds=0.05, interval_seconds=0.01)
    )
    assert await asyncio.wait_for(process.wait(), 5) == -signal.SIGKILL
    watching.cancel()
