"""What a scrape costs with many adapters: the pages' size, the time to make one and to get one.

Milliseconds are those of the clock and, under ``processor``, of work, which other programs on the
machine do not change. In process: no engine runs, the adapters have had requests, and all of them
are on the device. The yardstick is the client library's own writer over the same families.

``python -m benchmarks.serving.bench_metrics --adapters 1000``
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, cast

import uvicorn
from prometheus_client import generate_latest
from prometheus_client.core import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from multiflora.adapters.registry import Registry
from multiflora.adapters.tier import Tier
from multiflora.engine.client import EngineClient, EngineState
from multiflora.engine.errors import EngineUnavailable
from multiflora.engine.request import EngineStats, StageSeconds, VersionQueue
from multiflora.server.generation import Delta
from multiflora.server.listener import bind
from multiflora.server.metric.exposition import CONTENT_TYPE
from multiflora.server.metrics import Metrics

from ..harness import save

_PICKER_SECONDS: Final = 0.05
_NUM_TOKENS: Final = 16
_BYTES: Final = 4 << 20


class StillEngine:
    """Answers at once with the same numbers: what is measured is the API process."""

    state = EngineState.READY
    num_streams = 0

    def __init__(self, digests: Sequence[str]) -> None:
        self._digests = digests
        self._stats = EngineStats(
            num_running=32,
            kv_blocks_used=100,
            kv_blocks_total=1000,
            adapter_bytes_total=_BYTES * len(digests),
            version_bytes=dict.fromkeys(digests, _BYTES),
            version_queues=dict.fromkeys(digests[:32], VersionQueue(num_running=1)),
        )

    @property
    def info(self) -> Any:
        raise EngineUnavailable("there is none")

    async def stats(self) -> EngineStats:
        return self._stats

    async def adapter_states(self) -> dict[str, Tier]:
        return dict.fromkeys(self._digests, Tier.DEVICE)


class _Read(Collector):
    """A page's families, parsed, for the library to write again."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Sequence[Metric]:
        return self._families


async def main(num_adapters: int, seconds: float) -> None:
    names = [f"team-{number % 40}.adapter-{number}" for number in range(num_adapters)]
    digests = [f"{number:064x}" for number in range(num_adapters)]
    registry = Registry()
    for name, digest in zip(names, digests, strict=True):
        registry.publish(name, digest)
    engine = cast(EngineClient, StillEngine(digests))
    metrics = Metrics(engine, registry, base="base")
    for name in names:
        await _answer(metrics, name)
    pages = {"lean": metrics.render, "adapters": metrics.render_adapters}
    record = {
        "adapters": num_adapters,
        "pages": {name: await _measure(make) for name, make in pages.items()},
        "record_per_token_processor_us": round(await _per_token(metrics, names[0]), 2),
        "scrapes_over_http": await _scrape(metrics, seconds),
    }
    registry.close()
    print(save("metrics", record))


async def _answer(metrics: Metrics, name: str, num_tokens: int = _NUM_TOKENS) -> None:
    async def deltas():
        stages = StageSeconds(queue=0.01, load=0.002, prefill=0.05)
        for number in range(num_tokens):
            yield Delta(
                index=0,
                text="",
                num_tokens=number + 1,
                cached_tokens=0,
                stages=None if number else stages,
            )

    with metrics.request(name) as record:
        record.ask([32], num_choices=1)
        async for _ in record.watch(deltas()):
            pass
        record.succeed()


async def _per_token(metrics: Metrics, name: str, *, num_tokens: int = 50_000) -> float:
    """Microseconds of processor time, the stand-in for the engine included."""
    started = time.process_time()
    await _answer(metrics, name, num_tokens)
    return 1e6 * (time.process_time() - started) / num_tokens


async def _measure(make: Callable[[], Awaitable[bytes]], *, repeats: int = 15) -> dict[str, Any]:
    taken, worked = [], []
    content = b""
    for _ in range(repeats):
        started, began = time.perf_counter(), time.process_time()
        content = await make()
        taken.append(1e3 * (time.perf_counter() - started))
        worked.append(1e3 * (time.process_time() - began))
    return {
        "bytes": len(content),
        "series": sum(not line.startswith(b"#") for line in content.splitlines()),
        "make_ms": _spread(taken),
        "make_processor_ms": _spread(worked),
        "client_library_processor_ms": round(_library(content), 1),
    }


def _library(content: bytes) -> float:
    families = list(text_string_to_metric_families(content.decode()))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Read(families))
    taken = []
    for _ in range(3):
        started = time.process_time()
        generate_latest(registry)
        taken.append(1e3 * (time.process_time() - started))
    return statistics.median(taken)


async def _scrape(metrics: Metrics, seconds: float) -> dict[str, Any]:
    """A router's pace: the lean page every 50 ms over one kept connection."""

    async def page(request: Request) -> Response:
        return Response(await metrics.page.get(), media_type=CONTENT_TYPE)

    listener = bind("127.0.0.1", 0)
    app = Starlette(routes=[Route("/metrics", page)])
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.getsockname()[1])
    taken: list[float] = []
    ended = time.perf_counter() + seconds
    while (started := time.perf_counter()) < ended:
        writer.write(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = next(line for line in head.split("\r\n") if line.startswith("content-length"))
        await reader.readexactly(int(length.rpartition(" ")[2]))
        taken.append(1e3 * (time.perf_counter() - started))
        await asyncio.sleep(max(0.0, _PICKER_SECONDS - (time.perf_counter() - started)))
    writer.close()
    server.should_exit = True
    await serving
    return {"scrapes": len(taken), "interval_ms": 1e3 * _PICKER_SECONDS, "ms": _spread(taken)}


def _spread(taken: list[float]) -> dict[str, float]:
    ordered = sorted(taken)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return {
        "median": round(statistics.median(ordered), 3),
        "p99": round(p99, 3),
        "worst": round(ordered[-1], 3),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long pages are scraped")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.adapters, arguments.seconds))
