"""Many readers cost one page, and none of them waits for a long step without need."""

import asyncio

import pytest

from multiflora.server.metric.cached_page import CachedPage

pytestmark = pytest.mark.anyio


class Engine:
    """Makes pages that are numbered, once it is let."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.num_made = 0
        self.free = asyncio.Event()
        self.free.set()

    def clock(self) -> float:
        return self.seconds

    async def make(self) -> bytes:
        await self.free.wait()
        self.num_made += 1
        return str(self.num_made).encode()


@pytest.fixture
async def engine():
    return Engine()


@pytest.fixture
async def page(engine):
    return CachedPage(engine.make, fresh_seconds=0.2, clock=engine.clock)


async def test_a_fresh_page_is_not_made_again(engine, page):
    assert await page.get() == b"1"
    engine.seconds = 0.19
    assert await page.get() == b"1"
    engine.seconds = 0.21
    assert await page.get() == b"2"


async def test_readers_at_the_same_time_share_the_making(engine, page):
    assert await asyncio.gather(*(page.get() for _ in range(8))) == [b"1"] * 8
    assert engine.num_made == 1


async def test_who_reads_often_gets_the_last_page_during_a_long_step(engine, page):
    await page.get()
    engine.free.clear()
    engine.seconds = 0.5
    assert await page.get() == b"1"
    engine.free.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert await page.get() == b"2"


async def test_who_reads_seldom_waits_for_the_new_page(engine, page):
    await page.get()
    engine.free.clear()
    engine.seconds = 1.5
    reading = asyncio.create_task(page.get())
    await asyncio.sleep(0.02)
    assert not reading.done()
    engine.free.set()
    assert await reading == b"2"


async def test_a_reader_that_leaves_takes_the_page_from_nobody(engine, page):
    engine.free.clear()
    leaving, staying = (asyncio.create_task(page.get()) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    engine.free.set()
    assert await staying == b"1"


async def test_who_asks_for_a_new_page_gets_one_that_began_later(engine, page):
    engine.free.clear()
    early = asyncio.create_task(page.get())
    await asyncio.sleep(0)
    late = asyncio.create_task(page.get_new())
    await asyncio.sleep(0)
    engine.free.set()
    assert (await early, await late) == (b"1", b"2")
    assert await page.get() == b"2"
