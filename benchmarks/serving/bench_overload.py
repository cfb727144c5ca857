"""What is left of a server's throughput when ten times as many requests come as it can answer?

Capacity is what clients get who ask again as soon as they were answered. Then requests arrive at
random at a multiple of that rate, whatever becomes of earlier ones; none is repeated. Goodput is
what is answered with 200 in that time, over capacity. Clients run on the server's own machine.
"""

import argparse
import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks.harness import save
from benchmarks.serving.server_process import Connection, ServerProcess, connected, running_server

_PATH: Final = "/v1/completions"
_SAMPLE_SECONDS: Final = 0.5


@dataclass
class Tally:
    """Answers by status, and seconds from question to answer."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: dict[int, list[float]] = field(default_factory=dict)
    retry_after: list[float] = field(default_factory=list)

    def add(self, status: int, seconds: float) -> None:
        self.statuses[status] += 1
        self.seconds.setdefault(status, []).append(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of either phase")
    parser.add_argument("--factor", type=float, default=10.0, help="arrivals over capacity")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--slots", type=int, default=8, help="requests in one step")
    parser.add_argument("--queue", type=int, default=16, help="requests that may wait")
    arguments = parser.parse_args()
    record = measure(**vars(arguments))
    path = save("overload", record)
    print(f"goodput {record['goodput_over_capacity']:.3f} of capacity; saved {path}")


def measure(
    *, seconds: float, factor: float, max_tokens: int, slots: int, queue: int
) -> dict[str, Any]:
    """One server, both phases."""
    flags = (
        *("--max-num-requests", str(slots), "--max-queued-requests", str(queue)),
        *("--threads", "1"),
    )
    with running_server(*flags) as server:
        return asyncio.run(_measure(server, seconds, factor, max_tokens, slots + queue // 2))


async def _measure(
    server: ServerProcess, seconds: float, factor: float, max_tokens: int, num_clients: int
) -> dict[str, Any]:
    body = {"model": "multiflora-demo", "prompt": "Once upon a time", "max_tokens": max_tokens}
    body |= {"ignore_eos": True, "temperature": 0}
    await _closed_loop(server, body, min(5.0, seconds), num_clients)
    before = await _closed_loop(server, body, seconds, num_clients)
    capacity = before.statuses[200] / seconds
    samples: list[dict[str, float]] = []
    over = await _open_loop(server, body, seconds, factor * capacity, samples)
    goodput = over.statuses[200] / seconds
    memory = [sample["api_mib"] + sample["engine_mib"] for sample in samples]
    third = max(1, len(memory) // 3)
    return {
        "model": "embedded demo, NF4, one thread",
        "question": {"prompt_chars": len(body["prompt"]), "max_tokens": max_tokens},
        "seconds": seconds,
        "capacity_per_second": round(capacity, 2),
        "arrivals_per_second": round(factor * capacity, 2),
        "goodput_per_second": round(goodput, 2),
        "goodput_over_capacity": round(goodput / capacity, 3),
        "capacity_answers": dict(before.statuses),
        "overload_answers": dict(over.statuses),
        "accepted_seconds": _quantiles(over.seconds.get(200, [])),
        "refusal_seconds": _quantiles(over.seconds.get(429, [])),
        "retry_after_seconds": _quantiles(over.retry_after),
        "memory_mib": {
            "first_third": round(statistics.median(memory[:third]), 1),
            "last_third": round(statistics.median(memory[-third:]), 1),
            "peak": max(memory),
        },
    }


async def _closed_loop(server: ServerProcess, body: Any, seconds: float, num_clients: int) -> Tally:
    tally, end = Tally(), time.perf_counter() + seconds

    async def client() -> None:
        async with connected(server) as connection:
            while time.perf_counter() < end:
                started = time.perf_counter()
                status = (await connection.ask("POST", _PATH, body)).status
                if time.perf_counter() < end:
                    tally.add(status, time.perf_counter() - started)

    await asyncio.gather(*(client() for _ in range(num_clients)))
    return tally


async def _open_loop(
    server: ServerProcess, body: Any, seconds: float, rate: float, samples: list[dict[str, float]]
) -> Tally:
    """Arrivals of a Poisson process, each on a free connection of a pool."""
    tally, end, draw = Tally(), time.perf_counter() + seconds, random.Random(0)
    free: list[Connection] = []
    open_tasks: set[asyncio.Task[None]] = set()

    async def one() -> None:
        started = time.perf_counter()
        if free:
            connection = free.pop()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            connection = Connection(reader, writer)
        answer = await connection.ask("POST", _PATH, body)
        free.append(connection)
        if time.perf_counter() < end:
            tally.add(answer.status, time.perf_counter() - started)
            if answer.status == 429:
                tally.retry_after.append(int(answer.headers["retry-after-ms"]) / 1000)

    sampling = asyncio.create_task(_sample(server, samples, end))
    due = time.perf_counter()
    while (now := time.perf_counter()) < end:
        if now < due:
            await asyncio.sleep(due - now)
        due += draw.expovariate(rate)
        task = asyncio.create_task(one())
        open_tasks.add(task)
        task.add_done_callback(open_tasks.discard)
    await sampling
    await asyncio.gather(*open_tasks)
    for connection in free:
        connection.writer.close()
    return tally


async def _sample(server: ServerProcess, samples: list[dict[str, float]], end: float) -> None:
    while time.perf_counter() < end:
        samples.append(server.resources())
        await asyncio.sleep(_SAMPLE_SECONDS)


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    if not ordered:
        return {}
    places = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    last = len(ordered) - 1
    return {name: round(ordered[int(place * last)], 4) for name, place in places.items()}


if __name__ == "__main__":
    main()
