"""Draining lets in nobody new and knows when the last one has left."""

import asyncio

import pytest

from multiflora.server.drain import Drain
from multiflora.server.errors import Draining
from multiflora.server.http_server import HttpServer

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


async def test_a_drain_that_is_announced_still_lets_requests_in(client, complete, service):
    service.drain.announce()

    assert (await client.get("/ready")).json()["error"]["code"] == "draining"
    assert (await complete()).status_code == 200


async def test_notice_is_given_before_requests_are_refused():
    async def stop() -> None: ...

    drain = Drain()
    server = HttpServer(None, drain=drain, drain_timeout_seconds=1, stop_engine=stop)
    server.close_gently(notice_seconds=0.05)
    with drain.running():
        assert (drain.is_announced, drain.is_draining) == (True, False)
        await asyncio.sleep(0.1)
        assert drain.is_draining
        assert not server.should_exit
    await asyncio.sleep(0.01)

    assert server.should_exit


async def test_nobody_new_gets_in():
    drain = Drain()
    drain.begin()

    with pytest.raises(Draining), drain.running():
        pass
    assert drain.num_running == 0
