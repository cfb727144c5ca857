"""What is left of a server's throughput when ten times as many requests come as it can answer?

Capacity is what clients get who ask again as soon as they were answered. Then requests arrive at
random at a multiple of that rate, whatever becomes of earlier ones; none is repeated. Goodput is
what is answered with 200 in that time, over capacity. Clients run on the server's own machine.
"""

import argparse
import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from benchmarks.harness import save
from benchmarks.serving.server_process import Connection, ServerProcess, running_server
from multiflora.server.load_test.arrival import Arrival, drive
from multiflora.server.load_test.outcome import Outcome

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
    warmup = Arrival(concurrency=num_clients, seconds=min(5.0, seconds))
    await _loop(server, body, warmup)
    before = await _loop(server, body, replace(warmup, seconds=seconds))
    capacity = before.statuses[200] / seconds
    samples: list[dict[str, float]] = []
    sampling = asyncio.create_task(_sample(server, samples, time.perf_counter() + seconds))
    over = await _loop(server, body, Arrival(rate=factor * capacity, seconds=seconds))
    await sampling
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


class _Clients:
    """Asks on free connections, and opens another where there is none."""

    def __init__(self, server: ServerProcess, body: Any, seconds: float) -> None:
        self.tally = Tally()
        self._server, self._body = server, body
        self._end = time.perf_counter() + seconds
        self._free: list[Connection] = []

    async def ask(self, number: int) -> Outcome:
        """Answers count that come before the time is up."""
        started = time.perf_counter()
        if self._free:
            connection = self._free.pop()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._server.port)
            connection = Connection(reader, writer)
        answer = await connection.ask("POST", _PATH, self._body)
        self._free.append(connection)
        now = time.perf_counter()
        if now < self._end:
            self.tally.add(answer.status, now - started)
            if answer.status == 429:
                self.tally.retry_after.append(int(answer.headers["retry-after-ms"]) / 1000)
        error = "" if answer.status == 200 else str(answer.status)
        return Outcome(name=self._body["model"], seconds=now - started, error=error)

    def close(self) -> None:
        for connection in self._free:
            connection.writer.close()


async def _loop(server: ServerProcess, body: Any, arrival: Arrival) -> Tally:
    clients = _Clients(server, body, arrival.seconds or 0.0)
    try:
        await drive(clients.ask, arrival)
    finally:
        clients.close()
    return clients.tally


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
