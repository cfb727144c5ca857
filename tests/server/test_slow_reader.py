"""Clients that read slowly get larger pieces; those that read nothing are let go."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from multiflora.engine.client import EngineClient
from multiflora.engine.messages import Abort, Command, Events, Ready, Report, Submit
from multiflora.engine.request import EngineInfo, FinishReason, GenerationRequest, TokenEvent
from multiflora.server.app import create_app
from multiflora.server.http_server import HttpServer
from multiflora.server.limits import Limits
from multiflora.server.service import Service

from .fake_engine import FakeEngine

pytestmark = pytest.mark.anyio
# What the kernel keeps for a socket, of either side; it takes twice as much.
KERNEL_BYTES = 4096


class HastyEngine:
    """Gives a token as often as the event loop turns, whether anybody reads it or not."""

    def __init__(self, info: EngineInfo, token: int) -> None:
        self._info = info
        self._token = token
        self.num_tokens = 0
        self.aborted: list[str] = []
        self.on_report: Callable[[Report], None] = lambda report: None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, on_report: Callable[[Report], None], on_end: Callable[[], None]) -> None:
        self.on_report = on_report
        on_report(Ready(self._info))

    def send(self, command: Command) -> None:
        if isinstance(command, Submit):
            self._tasks.add(asyncio.create_task(self._answer(command.request)))
        elif isinstance(command, Abort):
            self.aborted.append(command.request_id)

    async def _answer(self, request: GenerationRequest) -> None:
        last = request.sampling.max_tokens
        for count in range(1, last + 1):
            if request.id in self.aborted:
                return
            reason = FinishReason.LENGTH if count == last else None
            event = TokenEvent(request_id=request.id, tokens=(self._token,), finish_reason=reason)
            self.on_report(Events((event,)))
            self.num_tokens += 1
            await asyncio.sleep(0)

    def kill(self) -> None: ...

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.fixture
def hasty(engine: FakeEngine) -> HastyEngine:
    (token,) = engine.tokenizer.encode("a")
    return HastyEngine(replace(engine.info, max_model_len=1 << 20), token)


@asynccontextmanager
async def asked(
    service: Service, hasty: HastyEngine, *, max_tokens: int, stall_seconds: float
) -> AsyncIterator[tuple[socket.socket, EngineClient]]:
    """A client's socket with a stream that it has not read, and the engine's client."""
    client = EngineClient(hasty)
    await client.start()
    limits = Limits(stall_seconds=stall_seconds)
    app = create_app(replace(service, client=client, limits=limits))
    server = HttpServer(
        app, drain=service.drain, drain_timeout_seconds=0, stop_engine=hasty.stop, limits=limits
    )
    listener, reader = socket.create_server(("127.0.0.1", 0)), socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BYTES)
    reader.setblocking(False)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    options = {"include_usage": True}
    body = {"model": "base", "prompt": "x", "stream": True, "stream_options": options}
    content = json.dumps({**body, "max_tokens": max_tokens, "ignore_eos": True}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: "
    loop = asyncio.get_running_loop()
    await loop.sock_connect(reader, listener.getsockname())
    await loop.sock_sendall(reader, f"{head}{len(content)}\r\n\r\n".encode() + content)
    try:
        yield reader, client
    finally:
        reader.close()
        server.close_gently()
        await serving
        await hasty.stop()


async def rest_of(reader: socket.socket) -> bytes:
    loop, content = asyncio.get_running_loop(), bytearray()
    while chunk := await loop.sock_recv(reader, 1 << 16):
        content += chunk
    return bytes(content)


def events_of(content: bytes) -> list[Any]:
    """Of a chunked answer; a chunk is a whole number of events."""
    lines = [line for line in content.split(b"\r\n") if line.startswith(b"data: ")]
    parts = [part for line in lines for part in line.split(b"\n\n") if part]
    return [json.loads(part.removeprefix(b"data: ")) for part in parts if b"[DONE]" not in part]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_slow_reader_gets_all_of_the_text_in_fewer_and_larger_pieces(
    service: Service, hasty: HastyEngine
) -> None:
    count = 5000
    async with asked(service, hasty, max_tokens=count, stall_seconds=30) as (reader, _):
        await until(lambda: hasty.num_tokens == count)
        events = events_of(await rest_of(reader))
    *pieces, usage = events
    texts = [choice["text"] for piece in pieces for choice in piece["choices"]]
    assert "".join(texts) == "a" * count
    assert usage["usage"]["completion_tokens"] == count
    assert len(pieces) < count / 4
    assert max(map(len, texts)) > 1000


async def test_a_reader_that_reads_nothing_is_let_go_and_its_request_ends(
    service: Service, hasty: HastyEngine
) -> None:
    async with asked(service, hasty, max_tokens=10**6, stall_seconds=0.2) as (reader, client):
        await until(lambda: bool(hasty.aborted))
        assert client.num_streams == 0
        await until(lambda: service.drain.num_running == 0)
        with suppress(ConnectionResetError):
            await rest_of(reader)
    assert hasty.num_tokens < 10**6


async def test_a_reader_that_goes_on_reading_is_not_let_go(
    service: Service, hasty: HastyEngine
) -> None:
    async with asked(service, hasty, max_tokens=10**6, stall_seconds=0.4) as (reader, client):
        loop = asyncio.get_running_loop()
        ends = loop.time() + 1.2
        while loop.time() < ends:
            assert await loop.sock_recv(reader, KERNEL_BYTES)
            await asyncio.sleep(0.02)
        assert (client.num_streams, hasty.aborted) == (1, [])
