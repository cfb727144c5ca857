"""Draining lets in nobody new and knows when the last one has left."""

import asyncio

import pytest

from multiflora.server.drain import Drain
from multiflora.server.errors import Draining

pytestmark = pytest.mark.anyio


async def test_an_idle_server_is_empty_at_once():
    assert await Drain().wait_empty(timeout_seconds=0.1)


async def test_the_last_running_request_ends_the_wait():
    drain = Drain()
    with drain.running(), drain.running():
        drain.begin()
        waiting = asyncio.create_task(drain.wait_empty(timeout_seconds=5))
        await asyncio.sleep(0)
        assert not waiting.done()

    assert await waiting


async def test_waiting_gives_up_in_time():
    drain = Drain()
    with drain.running():
        assert not await drain.wait_empty(timeout_seconds=0.01)


async def test_nobody_new_gets_in():
    drain = Drain()
    drain.begin()

    with pytest.raises(Draining), drain.running():
        pass
    assert drain.num_running == 0
