"""What does a streamed token cost the server's processor on its way out?

Chat answers are streamed to many clients at once by an engine that costs next to nothing: through
all of this server (``multiflora``), through its way from a piece of text to the connection
(``stream``), and by bare applications that write an orjson dict, or a pydantic model, per event.
Each is measured in process, with a client that throws everything away, and over loopback sockets
from a process of its own. Figures are processor time of the server per event.
"""

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import psutil
import uvicorn
import uvloop

from benchmarks.harness import save
from benchmarks.serving.server_process import free_port
from benchmarks.serving.sse_app import (
    MARK,
    PATH,
    TEXT,
    VARIANTS,
    SteadyEngine,
    engine_info,
    made_app,
)
from multiflora.engine.client import EngineClient
from multiflora.engine.request import GenerationRequest, SamplingParams
from multiflora.engine.text.answer_text import AnswerText
from multiflora.server.base_model import read_base_model
from multiflora.server.http_server import HttpServer
from multiflora.server.settings import ServeSettings


def _body(num_events: int) -> bytes:
    messages = [{"role": "user", "content": "Is 4821 even or odd?"}]
    fields = {"model": "multiflora-demo", "messages": messages, "stream": True}
    return orjson.dumps({**fields, "max_tokens": num_events, "ignore_eos": True})


async def _in_process(variant: str, folder: Path, streams: int, events: int) -> float:
    """Microseconds per event of the application, called as a server calls it."""
    async with made_app(variant, folder) as (app, _):
        await asyncio.gather(*(_call(app, 50) for _ in range(streams)))
        began = time.process_time()
        counts = await asyncio.gather(*(_call(app, events) for _ in range(streams)))
        return (time.process_time() - began) / sum(counts) * 1e6


async def _call(app: Any, num_events: int) -> int:
    """Events that the application wrote."""
    count, is_read = 0, False

    async def receive() -> Mapping[str, Any]:
        nonlocal is_read
        if is_read:
            await asyncio.Event().wait()
        is_read = True
        return {"type": "http.request", "body": _body(num_events), "more_body": False}

    async def send(message: Mapping[str, Any]) -> None:
        nonlocal count
        count += message.get("body", b"").count(MARK)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": PATH,
        "raw_path": PATH.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    await app(scope, receive, send)
    return count


async def _serve(variant: str, folder: Path, port: int) -> None:
    """Until standard input ends."""
    async with made_app(variant, folder) as (app, drain):
        if variant in ("multiflora", "stream"):
            server: uvicorn.Server = HttpServer(
                app, drain=drain, drain_timeout_seconds=1, stop_engine=_nothing
            )
        else:
            server = uvicorn.Server(
                uvicorn.Config(
                    app,
                    port=port,
                    http="h11",
                    ws="none",
                    lifespan="off",
                    log_config=None,
                    access_log=False,
                )
            )
        listener = socket.create_server(("127.0.0.1", port))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await asyncio.to_thread(sys.stdin.read)
        server.should_exit = True
        await serving


async def _nothing() -> None: ...


def _over_sockets(variant: str, streams: int, events: int) -> float:
    """Microseconds per event of a server process, whose clients are in this one."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.serving.bench_sse"]
    process = subprocess.Popen(
        [*command, "--serve", variant, "--port", str(port)], stdin=subprocess.PIPE
    )
    try:
        return uvloop.run(_ask(psutil.Process(process.pid), port, streams, events))
    finally:
        process.communicate(b"")


async def _ask(server: psutil.Process, port: int, streams: int, events: int) -> float:
    for _ in range(600):
        try:
            await _read(port, 10)
            break
        except OSError:
            await asyncio.sleep(0.1)
    await asyncio.gather(*(_read(port, 50) for _ in range(streams)))
    began = _cpu_seconds(server)
    counts = await asyncio.gather(*(_read(port, events) for _ in range(streams)))
    return (_cpu_seconds(server) - began) / sum(counts) * 1e6


async def _read(port: int, num_events: int) -> int:
    """Events that came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = _body(num_events)
    head = f"POST {PATH} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    count = 0
    while chunk := await reader.read(1 << 18):
        count += chunk.count(MARK)
    writer.close()
    return count


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _parts(events: int) -> dict[str, float]:
    """Microseconds per token of what happens before an event is written."""
    base = read_base_model(ServeSettings())
    tokens = base.tokenizer.encode(TEXT * 4)
    text = AnswerText(base.tokenizer)
    began = time.process_time()
    for count in range(events):
        text.push((tokens[count % len(tokens)],))
    text_seconds = time.process_time() - began
    began = time.process_time()
    uvloop.run(_drain(events))
    return {
        "detokenizing": round(text_seconds / events * 1e6, 2),
        "engine_and_client": round((time.process_time() - began) / events * 1e6, 2),
    }


async def _drain(events: int) -> None:
    """All tokens of 16 requests at once."""
    client = EngineClient(SteadyEngine((1,), engine_info("", 2)))
    await client.start()
    sampling = SamplingParams(max_tokens=events // 16, ignore_eos=True)

    async def read(number: int) -> None:
        request = GenerationRequest(id=str(number), prompt=(1,), sampling=sampling)
        async for _ in client.generate(request):
            pass

    await asyncio.gather(*(read(number) for number in range(16)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--events", type=int, default=2000, help="of each stream")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--serve", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        with tempfile.TemporaryDirectory() as folder:
            uvloop.run(_serve(arguments.serve, Path(folder), arguments.port))
        return
    record = measure(arguments.streams, arguments.events, arguments.repeats)
    print(json.dumps(record, indent=2))
    print(f"saved {save('sse', record)}")


def measure(streams: int, events: int, repeats: int) -> dict[str, Any]:
    """The lowest of ``repeats`` of each, taken in turn: others on the machine only add time."""
    found: dict[str, dict[str, list[float]]] = {"in_process": {}, "over_sockets": {}}
    parts: list[dict[str, float]] = []
    for _ in range(repeats):
        for variant in VARIANTS:
            with tempfile.TemporaryDirectory() as folder:
                alone = uvloop.run(_in_process(variant, Path(folder), streams, events))
            found["in_process"].setdefault(variant, []).append(alone)
            served = _over_sockets(variant, streams, events)
            found["over_sockets"].setdefault(variant, []).append(served)
        parts.append(_parts(streams * events))
    return {
        "streams": streams,
        "events_per_stream": events,
        "repeats": repeats,
        "microseconds_per_event": {
            way: {variant: round(min(values), 2) for variant, values in by_variant.items()}
            for way, by_variant in found.items()
        },
        "parts_of_multiflora": {name: min(part[name] for part in parts) for name in parts[0]},
        "all": found,
    }


if __name__ == "__main__":
    main()
