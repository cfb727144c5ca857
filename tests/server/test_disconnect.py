"""A client that goes away stops its work, and its lease comes back exactly once."""

import asyncio
import contextlib

import httpx
import pytest

from multiflora.engine.request import FinishReason

pytestmark = pytest.mark.anyio
DIGEST = "a" * 64


async def until(condition, *, seconds=2.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def slow(engine):
    """A first token at once, then one every 20 ms without end."""

    def script(request):
        token = engine.tokenizer.encode("a")
        for _ in range(1000):
            yield engine.event(request, token)
            yield 0.02

    return script


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_leaving_in_the_middle_aborts(url, engine, registry, service, stream, n):
    engine.script = slow(engine)
    body = {"model": "json", "prompt": "x", "stream": stream, "n": n}
    async with httpx.AsyncClient() as client:
        posting = asyncio.create_task(client.post(f"{url}/v1/completions", json=body))
        await until(lambda: len(engine.running) == n)
        assert registry.num_leases(DIGEST) == 1
        posting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await posting

    await until(lambda: not engine.running)
    await until(lambda: service.drain.num_running == 0)
    assert registry.num_leases(DIGEST) == 0
    assert len(engine.closed_early) == n
    assert b'outcome="disconnected"} 1.0' in await service.metrics.render()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_leaving_before_the_first_token_aborts(url, engine, registry, service, stream):
    engine.script = lambda request: [60.0]
    body = {"model": "json", "prompt": "x", "stream": stream}
    async with httpx.AsyncClient() as client:
        with contextlib.suppress(httpx.ReadTimeout):
            await client.post(f"{url}/v1/completions", json=body, timeout=0.2)

    await until(lambda: not engine.running)
    await until(lambda: service.drain.num_running == 0)
    assert registry.num_leases(DIGEST) == 0


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_finished_requests_leave_nothing_behind(url, engine, registry, service, stream):
    async with httpx.AsyncClient() as client:
        body = {"model": "json", "prompt": "x", "stream": stream, "n": 2}
        response = await client.post(f"{url}/v1/completions", json=body)

    assert response.status_code == 200
    assert engine.closed_early == []
    await until(lambda: service.drain.num_running == 0)
    assert registry.num_leases(DIGEST) == 0


async def test_a_request_keeps_its_version_when_the_name_moves_on(url, engine, registry):
    def script(request):
        yield 0.2
        yield engine.event(request, [], reason=FinishReason.STOP)

    engine.script = script
    async with httpx.AsyncClient() as client:
        body = {"model": "json", "prompt": "x"}
        posting = asyncio.create_task(client.post(f"{url}/v1/completions", json=body))
        await until(lambda: engine.running)
        registry.publish("json", "d" * 64)
        response = await posting

    assert response.headers["x-adapter-version"] == "a" * 64
    assert registry.num_leases(DIGEST) == 0


async def test_large_prompts_do_not_hold_up_other_requests(url, engine):
    big = {"model": "base", "prompt": ["hello world " * 40_000] * 4}
    async with httpx.AsyncClient(timeout=30) as client:
        posting = asyncio.create_task(client.post(f"{url}/v1/completions", json=big))
        slowest = 0.0
        loop = asyncio.get_running_loop()
        while not posting.done():
            started = loop.time()
            assert (await client.get(f"{url}/live")).status_code == 200
            slowest = max(slowest, loop.time() - started)

    assert (await posting).status_code == 400
    assert slowest < 1.0
