"""What blocks the event loop shows, and is forgotten."""

import asyncio
import time

import httpx
import pytest

from multiflora.server.loop_lag import LoopLag
from multiflora.server.service import Service

pytestmark = pytest.mark.anyio


async def test_what_blocks_the_event_loop_shows() -> None:
    lag = LoopLag()
    assert lag.seconds == 0
    lag.start()
    await asyncio.sleep(0.05)
    time.sleep(0.2)
    await asyncio.sleep(0.01)
    lag.stop()

    assert 0.1 < lag.seconds < 5


async def test_it_stops_looking() -> None:
    lag = LoopLag()
    lag.start()
    lag.stop()
    time.sleep(0.15)
    await asyncio.sleep(0)

    assert lag.seconds == 0


async def test_it_is_on_the_page(client: httpx.AsyncClient, service: Service) -> None:
    page = (await client.get("/metrics")).text

    assert f"multiflora_event_loop_lag_seconds {service.metrics.loop_lag.seconds:.1f}" in page
