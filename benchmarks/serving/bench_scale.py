"""What does it cost to serve 1, 8, ... 2,000 adapters of mixed ranks on one base?

For each number of adapters: times to the first token while every version is still on disk, then
throughput, times and memory under requests that are spread evenly and by Zipf's law; with 15 also
by the split of llm-d's regression load. Then versions are swapped under load. An engine process of
its own per number of adapters, asked through its client by a closed loop.

    python -m benchmarks.serving.bench_scale [--counts 1,8,32] [--smoke]
"""

import argparse
import asyncio
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from benchmarks.harness import save
from benchmarks.shape import publish_versions
from multiflora.engine.client import EngineClient
from multiflora.engine.config import (
    AdapterConfig,
    BaseConfig,
    CacheConfig,
    EngineConfig,
    SchedulerConfig,
)
from multiflora.engine.models.registry import load_model_config
from multiflora.engine.request import EngineStats
from multiflora.server.load_test.arrival import Arrival, drive
from multiflora.server.load_test.mix import Mix
from multiflora.server.load_test.outcome import Outcome, figures
from multiflora.server.size import parse_size

from .engine_load import BASES, EngineLoad, base_folder, engine

COUNTS: Final = (1, 8, 32, 128, 512, 2_000)
RANKS: Final = (8, 16, 32, 64)
# The number of adapters that the split was made for.
SPLIT_COUNT: Final = 15
SPLIT: Final = "tiers"
MIXES: Final = ("uniform", "zipf")
MODULES: Final = ("q_proj", "v_proj")
_MIB: Final = 2**20
_SWAP_ADAPTERS, _SWAP_PAUSE_SECONDS = 8, 0.25


@dataclass(frozen=True, slots=True)
class Bench:
    """A base with its stored versions, and how each cell is asked."""

    config: EngineConfig
    digests: list[str]
    arguments: argparse.Namespace

    def load(self, client: EngineClient, seed: int) -> EngineLoad:
        asked = self.arguments
        return EngineLoad(
            client, prompt_tokens=asked.prompt_tokens, new_tokens=asked.tokens, seed=seed
        )


def prepare(work: Path, arguments: argparse.Namespace) -> Bench:
    base = base_folder(arguments.base, work)
    count = max((*arguments.counts, SPLIT_COUNT, 2 * _SWAP_ADAPTERS))
    ranks = [RANKS[index % len(RANKS)] for index in range(count)]
    model = load_model_config(base)
    digests = publish_versions(work, model, ranks=ranks, modules=MODULES, seed=0)
    config = EngineConfig(
        base=BaseConfig(model=str(base)),
        device=arguments.device,
        threads=arguments.threads,
        data_dir=str(work),
        max_model_len=arguments.prompt_tokens + arguments.tokens,
        # Every prompt is computed: what is measured is adapters.
        cache=CacheConfig(memory_bytes=parse_size(arguments.kv_memory), prefix_caching=False),
        scheduler=SchedulerConfig(max_num_requests=arguments.concurrency),
        adapter=AdapterConfig(
            memory_bytes=parse_size(arguments.adapter_memory),
            host_memory_bytes=parse_size(arguments.host_memory),
        ),
    )
    return Bench(config, digests, arguments)


async def measure_count(bench: Bench, count: int, mixes: Sequence[str]) -> list[dict[str, Any]]:
    """Cells of one number of adapters: the first answer of each version, then every mix."""
    digests = bench.digests[:count]
    async with engine(bench.config) as client:
        await bench.load(client, 1).ask("", 0)
        before = await client.stats()
        cells = [await _cold(bench, client, digests)]
        for place, mix in enumerate(mixes):
            # Some of the versions are resident, as they are in a server that has run for long.
            await _asked(bench, client, digests, mix, bench.arguments.requests // 4, seed=2)
            cell = await _asked(
                bench, client, digests, mix, bench.arguments.requests, seed=3 + place
            )
            cells.append({"mix": mix, **cell})
    memory = before.machine.resident_bytes
    return [
        {**cell, "adapters": count, "engine_mib_before": round(memory / _MIB, 1)} for cell in cells
    ]


async def _cold(bench: Bench, client: EngineClient, digests: Sequence[str]) -> dict[str, Any]:
    """One request after the other, each for a version that is on disk."""
    load = bench.load(client, 0)
    count = min(len(digests), bench.arguments.cold)
    # From the end: Zipf's favourites stay cold until they are asked for.
    chosen = list(reversed(digests))[:count]
    before = await client.stats()
    run = await drive(
        lambda number: load.ask(chosen[number], number),
        Arrival(concurrency=1, num_requests=count),
    )
    return {"mix": "cold", **_cell(run.outcomes, run.seconds, before, await client.stats())}


async def _asked(
    bench: Bench,
    client: EngineClient,
    digests: Sequence[str],
    text: str,
    num_requests: int,
    *,
    seed: int,
) -> dict[str, Any]:
    load, mix = bench.load(client, seed), Mix.parse(text, digests)

    async def ask(number: int) -> Outcome:
        return await load.ask(mix.draw(Random(f"{seed} {number}")), number)

    before = await client.stats()
    arrival = Arrival(concurrency=bench.arguments.concurrency, num_requests=max(1, num_requests))
    run = await drive(ask, arrival)
    return _cell(run.outcomes, run.seconds, before, await client.stats())


def _cell(
    outcomes: Sequence[Outcome], seconds: float, before: EngineStats, after: EngineStats
) -> dict[str, Any]:
    arrivals = {
        tier: count - before.adapter_arrivals.get(tier, 0)
        for tier, count in after.adapter_arrivals.items()
    }
    total = sum(arrivals.values())
    return {
        **figures(outcomes, seconds),
        "distinct": len({outcome.name for outcome in outcomes}),
        "found_in_tier": {tier: round(n / total, 4) for tier, n in sorted(arrivals.items())},
        "evictions": after.adapter_evictions - before.adapter_evictions,
        "resident_versions": len(after.resident_versions),
        "engine_mib": round(after.machine.resident_bytes / _MIB, 1),
        "device_adapter_mib": round(after.adapter_bytes_used / _MIB, 1),
        "host_adapter_mib": round(after.adapter_host_bytes_used / _MIB, 1),
    }


async def measure_swap(bench: Bench) -> dict[str, Any]:
    """The same load twice: quiet, and while names move to versions that are still on disk."""
    live = bench.digests[:_SWAP_ADAPTERS]
    spare = bench.digests[_SWAP_ADAPTERS : 2 * _SWAP_ADAPTERS]
    num_swaps = 0
    async with engine(bench.config) as client:
        for digest in live:
            await client.warm(digest)
        load = bench.load(client, 9)

        async def ask(number: int) -> Outcome:
            return await load.ask(live[number % len(live)], number)

        async def swap() -> None:
            nonlocal num_swaps
            while True:
                place = num_swaps % len(live)
                await client.warm(spare[place])
                live[place], spare[place] = spare[place], live[place]
                await client.unload_version(spare[place])
                num_swaps += 1
                await asyncio.sleep(_SWAP_PAUSE_SECONDS)

        arrival = Arrival(
            concurrency=bench.arguments.concurrency, num_requests=bench.arguments.requests
        )
        await drive(ask, arrival)
        quiet = await drive(ask, arrival)
        swapping = asyncio.create_task(swap())
        moved = await drive(ask, arrival)
        swapping.cancel()
        await asyncio.gather(swapping, return_exceptions=True)
        if swapping.done() and not swapping.cancelled():
            swapping.result()
    return {
        "swaps": num_swaps,
        "quiet": figures(quiet.outcomes, quiet.seconds),
        "swapping": figures(moved.outcomes, moved.seconds),
    }


def planned_cells(counts: Iterable[int]) -> list[dict[str, Any]]:
    """Of which numbers of adapters and mixes there should be cells, in the order of a table."""
    cells = [(count, mix) for count in sorted(counts) for mix in ("cold", *MIXES)]
    cells += [(SPLIT_COUNT, "cold"), (SPLIT_COUNT, SPLIT)]
    return [{"adapters": count, "mix": mix} for count, mix in cells]


def ratios(cells: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Throughput of every number of adapters over that of the fewest, for each mix."""
    found = {}
    for mix in dict.fromkeys(cell["mix"] for cell in cells if cell["mix"] != "cold"):
        speeds = {c["adapters"]: c["tokens_per_second"] for c in cells if c["mix"] == mix}
        fewest = min(speeds)
        for count, speed in speeds.items():
            if count != fewest:
                found[f"{mix}, {count} adapters over {fewest}"] = round(speed / speeds[fewest], 3)
    return found


def main() -> None:
    arguments = _arguments()
    record: dict[str, Any] = {
        "arguments": vars(arguments),
        "ranks": RANKS,
        "modules": MODULES,
        # What a whole run measures: a cell that is not there is shown as missing.
        "planned": planned_cells({*COUNTS, *arguments.counts}),
        "cells": [],
    }
    path: Path | None = None
    with tempfile.TemporaryDirectory(dir=arguments.work) as name:
        bench = prepare(Path(name), arguments)
        counts = [(count, MIXES) for count in arguments.counts]
        for count, mixes in (*counts, (SPLIT_COUNT, (SPLIT,))):
            cells = asyncio.run(measure_count(bench, count, mixes))
            record["cells"] += cells
            record["ratios"] = ratios(record["cells"])
            for cell in cells:
                print(_line(cell), flush=True)
            # After every count: a run that is cut short takes none with it.
            path = save(_name(arguments), record, path=path)
        record["swap"] = asyncio.run(measure_swap(bench))
        path = save(_name(arguments), record, path=path)
    print(f"{record['swap']['swaps']} swaps; saved {path}")


def _name(arguments: argparse.Namespace) -> str:
    return "scale-smoke" if arguments.smoke else "scale"


def _line(cell: Mapping[str, Any]) -> str:
    first = cell["first_token_ms"] or {}
    return (
        f"{cell['adapters']:5} {cell['mix']:8} {cell['tokens_per_second']:8.1f} tokens/s, first "
        f"token {first.get('p50')} ms, p99 {first.get('p99')}, engine {cell['engine_mib']} MiB, "
        f"{cell['failed']} failed"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("--counts", default=",".join(map(str, COUNTS)), help="numbers of adapters")
    option("--base", choices=("demo", *BASES), default="small")
    option("--device", choices=("cpu", "cuda"), default="cpu")
    option("--threads", type=int, default=2)
    option("--requests", type=int, default=200, help="of every cell")
    option("--cold", type=int, default=64, help="at most so many cold versions are asked")
    option("--concurrency", type=int, default=8)
    option("--prompt-tokens", type=int, default=32)
    option("--tokens", type=int, default=16, help="new tokens per request")
    option("--adapter-memory", default="256MiB", help="of the device")
    option("--host-memory", default="512MiB", help="of the host, for adapters")
    option("--kv-memory", default="256MiB")
    option("--notes", default="", help="about the machine, kept in the record")
    option("--work", help="where bases and versions are written, 2 GB; default: /tmp")
    option("--smoke", action="store_true", help="the demo's base and few requests: that it runs")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.counts, arguments.base = "1,8", "demo"
        arguments.requests, arguments.cold, arguments.tokens, arguments.threads = 12, 4, 4, 1
        arguments.adapter_memory, arguments.host_memory = "4MiB", "4MiB"
        arguments.kv_memory = "16MiB"
    arguments.counts = [int(count) for count in arguments.counts.split(",")]
    return arguments


if __name__ == "__main__":
    main()
