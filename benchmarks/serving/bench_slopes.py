"""How does the time of a decode step grow with adapters, ranks, context and batch?

Requests that begin together decode together: the median time between two of their tokens is that of
a step. One thing is changed at a time, and a line through the points has the slope that a plot of
it names. All rows have different adapters unless their number is what is changed.

    python -m benchmarks.serving.bench_slopes [--axes adapters,ranks] [--smoke]
"""

import argparse
import asyncio
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import save
from benchmarks.shape import ALL_LINEARS, publish_versions
from multiflora.engine.client import EngineClient
from multiflora.engine.config import (
    AdapterConfig,
    BaseConfig,
    CacheConfig,
    EngineConfig,
    SchedulerConfig,
)
from multiflora.engine.models.registry import load_model_config
from multiflora.server.size import parse_size

from .engine_load import BASES, EngineLoad, base_folder, engine

RANK: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One batch: so many rows, on so many distinct versions of a rank, after so long a prompt."""

    x: int
    rows: int
    adapters: int
    rank: int
    prompt_tokens: int

    def new_tokens(self, tokens: int) -> int:
        """So many that all rows decode ``tokens`` together once the last prompt is computed.

        Rows that are done with theirs decode beside the others' prompts.
        """
        a_step = SchedulerConfig().max_batched_tokens - self.rows
        return tokens + -(-self.rows * self.prompt_tokens // a_step) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How far each axis goes, and where the others stand meanwhile."""

    adapters: tuple[int, ...]
    ranks: tuple[int, ...]
    contexts: tuple[int, ...]
    batches: tuple[int, ...]
    rows: int
    prompt_tokens: int

    def points(self) -> dict[str, list[Point]]:
        """Of every axis, by its name."""
        rows, prompt = self.rows, self.prompt_tokens
        few = {"rows": rows, "prompt_tokens": prompt}
        return {
            "adapters": [Point(x=n, adapters=n, rank=RANK, **few) for n in self.adapters],
            "ranks": [Point(x=r, adapters=rows, rank=r, **few) for r in self.ranks],
            "context": [
                Point(x=n, rows=rows, adapters=rows, rank=RANK, prompt_tokens=n)
                for n in self.contexts
            ],
            "batch": [
                Point(x=n, rows=n, adapters=n, rank=RANK, prompt_tokens=prompt)
                for n in self.batches
            ],
        }


FULL: Final = Scale(
    adapters=(0, 1, 2, 4, 8, 16),
    ranks=(8, 16, 32, 64),
    contexts=(64, 256, 512, 1_024, 2_048),
    batches=(1, 2, 4, 8, 16, 32),
    rows=16,
    prompt_tokens=32,
)
SMOKE: Final = Scale(
    adapters=(0, 2), ranks=(8, 16), contexts=(16, 64), batches=(1, 2), rows=2, prompt_tokens=16
)
AXES: Final = tuple(FULL.points())


async def step_seconds(
    client: EngineClient, point: Point, digests: Sequence[str], *, tokens: int, repeats: int
) -> list[float]:
    """The median step of each repeat."""
    for digest in digests[: point.adapters]:
        await client.warm(digest)
    medians = []
    for repeat in range(repeats + 1):
        load = EngineLoad(
            client,
            prompt_tokens=point.prompt_tokens,
            new_tokens=point.new_tokens(tokens),
            seed=1000 * point.x,
        )
        names = [
            digests[row % point.adapters] if point.adapters else "" for row in range(point.rows)
        ]
        asked = await asyncio.gather(
            *(load.ask(name, repeat * point.rows + row) for row, name in enumerate(names))
        )
        assert not any(outcome.error for outcome in asked), asked
        # Until the last prompt is computed, steps are not those of decoding.
        begin = max(outcome.first_token or 0.0 for outcome in asked)
        apart = [gaps_after(one.first_token, one.gaps, begin) for one in asked]
        if min(map(len, apart)) < tokens // 2:
            raise SystemExit(f"{point}: the rows did not decode together; raise --kv-memory")
        gaps = [gap for of_row in apart for gap in of_row]
        # The first batch captures, allocates and plans.
        if repeat:
            medians.append(statistics.median(gaps))
    return medians


def gaps_after(first: float | None, gaps: Sequence[float], begin: float) -> list[float]:
    """The gaps of a stream that begin at ``begin`` or later."""
    found, at = [], first or 0.0
    for gap in gaps:
        if at >= begin:
            found.append(gap)
        at += gap
    return found


def fit(points: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """A straight line through ``x`` and ``step_ms`` by least squares; ``r2`` is 1 for a line."""
    xs, ys = [p["x"] for p in points], [p["step_ms"] for p in points]
    line = statistics.linear_regression(xs, ys)
    mean = statistics.fmean(ys)
    spread = sum((y - mean) ** 2 for y in ys)
    missed = sum((y - line.intercept - line.slope * x) ** 2 for x, y in zip(xs, ys, strict=True))
    return {
        "slope_ms": round(line.slope, 6),
        "intercept_ms": round(line.intercept, 4),
        "r2": round(1 - missed / spread, 4) if spread else 1.0,
    }


async def measure_axis(
    config: EngineConfig,
    points: Sequence[Point],
    digests: Mapping[int, Sequence[str]],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """All points of one axis, and the line through them."""
    found = []
    async with engine(config) as client:
        for point in points:
            seconds = await step_seconds(
                client,
                point,
                digests[point.rank],
                tokens=arguments.tokens,
                repeats=arguments.repeats,
            )
            found.append(
                {
                    "x": point.x,
                    "step_ms": round(1e3 * statistics.median(seconds), 4),
                    "repeats_ms": [round(1e3 * value, 4) for value in seconds],
                }
            )
            print(f"  {point}: {found[-1]['step_ms']} ms", flush=True)
            for digest in digests[point.rank][: point.adapters]:
                await client.unload_version(digest)
    return {"points": found, **fit(found)}


def main() -> None:
    arguments = _arguments()
    scale = SMOKE if arguments.smoke else FULL
    axes = {name: scale.points()[name] for name in arguments.axes}
    record: dict[str, Any] = {"arguments": vars(arguments), "rank": RANK, "rows": scale.rows}
    record |= {"prompt_tokens": scale.prompt_tokens, "axes": {}}
    path: Path | None = None
    with tempfile.TemporaryDirectory(dir=arguments.work) as name:
        work = Path(name)
        base = base_folder(arguments.base, work)
        model = load_model_config(base)
        ranks = {point.rank for points in axes.values() for point in points}
        most = max(point.adapters for points in axes.values() for point in points)
        digests = {
            rank: publish_versions(
                work, model, ranks=[rank] * most, modules=ALL_LINEARS, seed=1000 * rank
            )
            for rank in sorted(ranks)
        }
        config = EngineConfig(
            base=BaseConfig(model=str(base)),
            device=arguments.device,
            threads=arguments.threads,
            data_dir=str(work),
            max_model_len=max(
                point.prompt_tokens + point.new_tokens(arguments.tokens)
                for points in axes.values()
                for point in points
            ),
            cache=CacheConfig(memory_bytes=parse_size(arguments.kv_memory), prefix_caching=False),
            scheduler=SchedulerConfig(max_num_requests=max(scale.rows, *scale.batches)),
            adapter=AdapterConfig(memory_bytes=parse_size(arguments.adapter_memory)),
        )
        for axis, points in axes.items():
            print(axis, flush=True)
            record["axes"][axis] = asyncio.run(measure_axis(config, points, digests, arguments))
            # After every axis: a run that is cut short takes none with it.
            path = save("slopes-smoke" if arguments.smoke else "slopes", record, path=path)
    print(f"saved {path}")


def _axes(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(AXES):
        raise argparse.ArgumentTypeError(f"{sorted(unknown)} are none of {', '.join(AXES)}")
    return names


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("--axes", type=_axes, default=AXES, help=f"default: {','.join(AXES)}")
    option("--base", choices=("demo", *BASES), default="small")
    option("--device", choices=("cpu", "cuda"), default="cpu")
    option("--threads", type=int, default=2)
    option("--tokens", type=int, default=24, help="new tokens per request")
    option("--repeats", type=int, default=7, help="of every point; the median counts")
    option("--adapter-memory", default="1GiB")
    option("--kv-memory", default="1GiB")
    option("--notes", default="", help="about the machine, kept in the record")
    option("--work", help="where bases and versions are written; default: /tmp")
    option("--smoke", action="store_true", help="the demo's base and short axes: that it runs")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.base, arguments.tokens, arguments.repeats, arguments.threads = "demo", 32, 1, 1
        arguments.adapter_memory, arguments.kv_memory = "16MiB", "16MiB"
    return arguments


if __name__ == "__main__":
    main()
