"""What do loads, evictions and a greedy neighbour cost those who have nothing to do with them?

Three scenarios on one small random base: (a) the gaps between a resident stream's tokens while 50
cold rank-64 versions load, beside a quiet run; (b) Zipf traffic over 2,000 versions with device
memory for 32; (c) the first-token latency of 8 hot adapters with and without an abusive one.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.harness import save
from benchmarks.serving.engine_load import engine
from benchmarks.shape import ALL_LINEARS, SMALL, build_base, publish_versions
from multiflora.engine.client import EngineClient
from multiflora.engine.config import (
    AdapterConfig,
    BaseConfig,
    CacheConfig,
    EngineConfig,
    SchedulerConfig,
)
from multiflora.engine.models.registry import load_model_config
from multiflora.engine.request import (
    AdapterShare,
    EngineStats,
    GenerationRequest,
    SamplingParams,
)

NUM_COLD, COLD_RANK = 50, 64
NUM_REGISTERED, SMALL_RANK, DEVICE_VERSIONS, HOST_VERSIONS = 2_000, 2, 32, 256
ZIPF = 1.0
NUM_HOT, NUM_ABUSIVE = 8, 64
MAX_REQUESTS = 16
# Between two loads, and between the quiet time that is looked at and the load after it.
_PAUSE_SECONDS, _APART_SECONDS = 0.08, 0.02


@dataclass(frozen=True, slots=True)
class Bench:
    """A base, its stored versions and the settings that scenarios start from."""

    config: EngineConfig
    cold: list[str]
    small: list[str]
    small_bytes: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Tokens of one request, and the seconds from its submission at ``began`` to each of them."""

    tokens: tuple[int, ...]
    seconds: tuple[float, ...]
    began: float

    @property
    def gaps(self) -> list[float]:
        return [b - a for a, b in pairwise(self.seconds)]

    def gaps_during(self, start: float, stop: float) -> list[float]:
        """Those that overlap a time by the performance counter."""
        times = [self.began + seconds for seconds in self.seconds]
        return [b - a for a, b in pairwise(times) if a < stop and b > start]


def prepare(root: Path, arguments: argparse.Namespace) -> Bench:
    base = build_base(root / "base", SMALL)
    model = load_model_config(base)
    cold = publish_versions(
        root, model, ranks=[COLD_RANK] * NUM_COLD, modules=ALL_LINEARS, seed=10**6
    )
    small = publish_versions(
        root,
        model,
        ranks=[SMALL_RANK] * arguments.registered,
        modules=("q_proj", "v_proj"),
        seed=0,
    )
    config = EngineConfig(
        base=BaseConfig(model=str(base)),
        device="cpu",
        threads=1,
        data_dir=str(root),
        max_model_len=2_048,
        cache=CacheConfig(memory_bytes=256 << 20, prefix_caching=False),
        scheduler=SchedulerConfig(max_num_requests=MAX_REQUESTS),
    )
    return Bench(config, cold, small, asyncio.run(_measure(config, small[0])))


async def _measure(config: EngineConfig, digest: str) -> int:
    """Bytes of one version on the device."""
    async with engine(config) as client:
        await client.warm(digest)
        return (await client.stats()).adapter_bytes_used


_numbers = iter(range(1 << 60))


async def ask(client: EngineClient, digest: str | None, count: int, *, prompt: int = 0) -> Answer:
    """One greedy request with a prompt of 16 tokens that ``prompt`` chooses."""
    generator = random.Random(prompt)
    request = GenerationRequest(
        id=str(next(_numbers)),
        prompt=tuple(generator.randrange(1, SMALL["vocab_size"]) for _ in range(16)),
        sampling=SamplingParams(max_tokens=count, temperature=0, ignore_eos=True),
        adapters=(AdapterShare(digest),) if digest else (),
    )
    started = time.perf_counter()
    tokens: list[int] = []
    seconds: list[float] = []
    async for event in client.generate(request):
        tokens += event.tokens
        seconds += [time.perf_counter() - started] * len(event.tokens)
    return Answer(tuple(tokens), tuple(seconds), started)


async def resident_stream(bench: Bench, num_tokens: int) -> dict[str, Any]:
    """(a): one decode row on a resident version: quiet, and beside loads at once and in turn."""
    adapter = AdapterConfig(memory_bytes=1 << 30, host_memory_bytes=1 << 30)
    found: dict[str, list[float]] = {"quiet": [], "loading": []}
    longest: dict[str, list[float]] = {"quiet": [], "loading": []}
    load_seconds = []
    async with engine(replace(bench.config, adapter=adapter)) as client:
        await client.load_version(bench.small[0])
        await ask(client, bench.small[0], 32)
        for _ in range(2):
            quiet = await ask(client, bench.small[0], num_tokens)
            found["quiet"] += quiet.gaps
            answer, [(started, ended)] = await _beside(_all_at_once, client, bench, num_tokens)
            found["loading"] += answer.gaps_during(started, ended)
            load_seconds.append(ended - started)
            assert answer.tokens == quiet.tokens
            answer, loads = await _beside(_one_by_one, client, bench, num_tokens)
            quiet_since = 0.0
            for started, ended in loads:
                longest["loading"].append(max(answer.gaps_during(started, ended)))
                # As long a time before it, in which nothing loads and no gap of the load begins.
                before = started - _APART_SECONDS
                since = max(quiet_since, before - (ended - started))
                longest["quiet"].append(max(answer.gaps_during(since, before)))
                quiet_since = ended
            assert answer.tokens == quiet.tokens
    median = statistics.median(found["quiet"])
    return {
        "gaps_milliseconds": {name: _spread(gaps) for name, gaps in found.items()},
        "longest_gap_in_quiet_steps": round(max(found["loading"]) / median, 2),
        "longest_quiet_gap_in_quiet_steps": round(max(found["quiet"]) / median, 2),
        "gaps_over_two_quiet_steps": {
            name: f"{sum(gap > 2 * median for gap in gaps)} of {len(gaps)}"
            for name, gaps in found.items()
        },
        "seconds_for_50_loads": [round(seconds, 2) for seconds in load_seconds],
        # Of each load alone, of a known recipe and from the page cache.
        "longest_gap_of_one_load_milliseconds": {n: _spread(gaps) for n, gaps in longest.items()},
        "added_by_one_load_in_quiet_steps": _added(longest, median),
    }


def _added(longest: Mapping[str, Sequence[float]], step: float) -> dict[str, float]:
    """How much longer the longest gap during a load is than that of as long a quiet time."""
    added = [a - b for a, b in zip(longest["loading"], longest["quiet"], strict=True)]
    shares = {"median": 0.5, "p90": 0.9, "worst": 1.0}
    return {name: round(_quantile(added, share) / step, 2) for name, share in shares.items()}


Times = list[tuple[float, float]]


async def _beside(
    load: Callable[[EngineClient, Sequence[str]], Awaitable[Times]],
    client: EngineClient,
    bench: Bench,
    num_tokens: int,
) -> tuple[Answer, Times]:
    """The stream's answer, and when ``load`` was loading; nothing of it stays in memory."""
    stream = asyncio.create_task(ask(client, bench.small[0], num_tokens))
    await asyncio.sleep(0.2)
    times = await load(client, bench.cold)
    assert not stream.done(), "the stream ended before the loads: raise --stream-tokens"
    answer = await stream
    for digest in bench.cold:
        await client.unload_version(digest)
    return answer, times


async def _all_at_once(client: EngineClient, digests: Sequence[str]) -> Times:
    started = time.perf_counter()
    await asyncio.gather(*(client.warm(digest) for digest in digests))
    return [(started, time.perf_counter())]


async def _one_by_one(client: EngineClient, digests: Sequence[str]) -> Times:
    times = []
    for digest in digests:
        await asyncio.sleep(_PAUSE_SECONDS)
        started = time.perf_counter()
        await client.warm(digest)
        times.append((started, time.perf_counter()))
    return times


async def zipf_traffic(bench: Bench, num_requests: int, concurrency: int) -> dict[str, Any]:
    """(b): hits by tier, and what being cold adds to the first token."""
    budget = AdapterConfig(
        memory_bytes=DEVICE_VERSIONS * bench.small_bytes,
        host_memory_bytes=HOST_VERSIONS * bench.small_bytes,
    )
    config = replace(bench.config, adapter=budget)
    generator = random.Random(1)
    weights = [1 / (rank + 1) ** ZIPF for rank in range(len(bench.small))]
    picks = generator.choices(range(len(bench.small)), weights, k=num_requests)
    async with engine(config) as client:
        hot = await _closed_loop(client, [bench.small[0]] * (num_requests // 4), concurrency)
        await client.unload_version(bench.small[0])
        before = await client.stats()
        mixed = await _closed_loop(client, [bench.small[pick] for pick in picks], concurrency)
        stats = await client.stats()
    sample = generator.sample(range(num_requests), min(60, num_requests))
    async with engine(config) as alone:
        for index in sample:
            answer = await ask(alone, bench.small[picks[index]], 4, prompt=index)
            assert answer.tokens == mixed[index].tokens, f"request {index} was answered wrongly"
        plain = [await ask(alone, None, 4, prompt=index) for index in sample]
    differ = sum(a.tokens != mixed[i].tokens for a, i in zip(plain, sample, strict=True))
    first = [answer.seconds[0] for answer in mixed]
    resident = [answer.seconds[0] for answer in hot]
    return {
        "requests": num_requests,
        "concurrency": concurrency,
        "distinct_versions": len(set(picks)),
        "first_token_milliseconds": {"zipf": _spread(first), "one resident": _spread(resident)},
        "p99_added_wait_milliseconds": round(1e3 * (_quantile(first) - _quantile(resident)), 2),
        "answers_checked": f"{len(sample)} equal to a run alone, {differ} differ from the base",
        **_tier_figures(before, stats),
    }


async def _closed_loop(
    client: EngineClient, digests: Sequence[str], concurrency: int
) -> list[Answer]:
    turns = asyncio.Semaphore(concurrency)

    async def one(index: int, digest: str) -> Answer:
        async with turns:
            return await ask(client, digest, 4, prompt=index)

    return await asyncio.gather(*(one(i, digest) for i, digest in enumerate(digests)))


def _tier_figures(before: EngineStats, after: EngineStats) -> dict[str, Any]:
    arrivals = {
        tier: count - before.adapter_arrivals.get(tier, 0)
        for tier, count in after.adapter_arrivals.items()
    }
    total = sum(arrivals.values())
    assert after.adapter_leases == 0
    assert after.adapter_bytes_used <= after.adapter_bytes_total
    assert after.adapter_host_bytes_used <= after.adapter_host_bytes_total
    return {
        "found_in_tier": {tier: f"{n / total:.1%}" for tier, n in sorted(arrivals.items())},
        "file_reads": after.adapter_loads - before.adapter_loads,
        "arrivals_on_device": after.adapter_copies - before.adapter_copies,
        "evictions_from_device": after.adapter_evictions - before.adapter_evictions,
        "evictions_from_host": after.adapter_host_evictions - before.adapter_host_evictions,
    }


async def abusive_neighbour(bench: Bench, rounds: int) -> dict[str, Any]:
    """(c): 8 hot adapters, one request each at a time; then the same beside 64 long requests."""
    hot, abuser = bench.small[:NUM_HOT], bench.small[NUM_HOT]
    async with engine(bench.config) as client:
        for digest in (*hot, abuser):
            await client.load_version(digest)
        alone = await _hot_latencies(client, hot, rounds)
        flood = [
            asyncio.create_task(ask(client, abuser, 400, prompt=i)) for i in range(NUM_ABUSIVE)
        ]
        await asyncio.sleep(1.0)
        beside = await _hot_latencies(client, hot, rounds)
        stats = await client.stats()
        unfinished = sum(not task.done() for task in flood)
        for task in flood:
            task.cancel()
        await asyncio.gather(*flood, return_exceptions=True)
    return {
        "first_token_milliseconds": {"alone": _spread(alone), "beside": _spread(beside)},
        "abusive_requests_unfinished_at_the_end": unfinished,
        "set_back_or_preempted": stats.preemptions,
        "starvation_steps": bench.config.scheduler.starvation_steps,
        "running_requests_at_most": MAX_REQUESTS,
    }


async def _hot_latencies(client: EngineClient, hot: Sequence[str], rounds: int) -> list[float]:
    async def one(place: int, digest: str) -> list[float]:
        answers = [await ask(client, digest, 8, prompt=place * 1000 + n) for n in range(rounds)]
        return [answer.seconds[0] for answer in answers]

    found = await asyncio.gather(*(one(place, digest) for place, digest in enumerate(hot)))
    return [seconds for each in found for seconds in each]


def _quantile(values: Sequence[float], share: float = 0.99) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    figures = {
        "median": statistics.median(seconds),
        "p99": _quantile(seconds),
        "max": max(seconds),
    }
    return {name: round(1e3 * value, 2) for name, value in figures.items()}


def main() -> None:
    arguments = _parse()
    with tempfile.TemporaryDirectory() as scratch:
        bench = prepare(Path(arguments.work or scratch), arguments)
        scenarios: dict[str, Callable[[], Awaitable[dict[str, Any]]]] = {
            "resident_stream": lambda: resident_stream(bench, arguments.stream_tokens),
            "zipf_traffic": lambda: zipf_traffic(bench, arguments.requests, 8),
            "abusive_neighbour": lambda: abusive_neighbour(bench, arguments.rounds),
        }
        results = {}
        for name, run in scenarios.items():
            results[name] = asyncio.run(_run(run))
            print(name, json.dumps(results[name], indent=2), flush=True)
    record = {
        "notes": arguments.notes,
        "base": SMALL,
        "registered": arguments.registered,
        "bytes_per_small_version": bench.small_bytes,
        "device_budget_versions": DEVICE_VERSIONS,
        "host_budget_versions": HOST_VERSIONS,
        "zipf_exponent": ZIPF,
        "scheduler": asdict(bench.config.scheduler),
        **results,
    }
    print(f"saved {save('adapter-tiers', record)}")


async def _run(scenario: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    return await scenario()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--registered", type=int, default=NUM_REGISTERED)
    parser.add_argument("--requests", type=int, default=2_000, help="requests of the Zipf traffic")
    parser.add_argument("--stream-tokens", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=20, help="requests per hot adapter")
    parser.add_argument("--notes", default="", help="about the machine, kept in the record")
    parser.add_argument("--work", help="keep the base and the versions here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
