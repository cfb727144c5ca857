"""Where does the time of a step go on a CPU, and how much of it does the machine need at least?

An engine in this process, of which every call of the compiled core is timed; the rest of a step is
the interpreter's: planning, sampling and what torch computes. Steps of decoding are looked at once
all rows decode, prompts as a whole. The least is the time for the bytes of the weights or for their
multiply-adds, whichever is longer, by what this machine reads and computes in the same run.

    python -m benchmarks.serving.bench_step_profile [--repeats 3] [--smoke]
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import save
from benchmarks.kernels.cpu_limits import CpuLimits, measure_limits
from benchmarks.serving.engine_load import base_folder
from benchmarks.shape import ALL_LINEARS, publish_versions
from multiflora.engine.client import EngineClient
from multiflora.engine.config import BaseConfig, CacheConfig, EngineConfig, SchedulerConfig
from multiflora.engine.models.config import ModelConfig
from multiflora.engine.models.registry import load_model_config
from multiflora.engine.request import AdapterShare, GenerationRequest, SamplingParams
from multiflora.kernels.cpu_ops.core import Core, load_core

RANK: Final = 16
# Of an NF4 weight: a code, and its part of the scale of 64.
_NF4_BYTES: Final = 0.5 + 4 / 64


@dataclass(frozen=True, slots=True)
class Case:
    """``rows`` requests over ``adapters``; without ``new_tokens`` beyond one it is of prompts."""

    name: str
    rows: int
    adapters: int
    prompt_tokens: int = 16
    new_tokens: int = 64
    quantize_head: bool = False

    @property
    def decodes(self) -> bool:
        return self.new_tokens > 1


FULL: Final = (
    Case("1 stream", 1, 0),
    Case("8 streams", 8, 0),
    Case("8 streams on 8 adapters", 8, 8),
    Case("32 streams", 32, 0),
    Case("a prompt of 512", 1, 0, prompt_tokens=512, new_tokens=1),
    Case("1 stream, quantized head", 1, 0, quantize_head=True),
)
SMOKE: Final = (
    Case("1 stream", 1, 0, new_tokens=8),
    Case("2 streams on 2 adapters", 2, 2, new_tokens=8),
    Case("a prompt of 40", 1, 0, prompt_tokens=40, new_tokens=1),
)


class CoreProfile:
    """Seconds and calls of each operation of ``core`` since the last ``clear``."""

    def __init__(self, core: Core) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        for name, method in vars(Core).items():
            if callable(method) and not name.startswith("_"):
                setattr(core, name, self._timed(name, getattr(core, name)))

    def _timed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*arguments, **named)
            finally:
                self.seconds[name] += time.perf_counter() - started
                self.calls[name] += 1

        return call

    def clear(self) -> None:
        self.seconds.clear()
        self.calls.clear()


async def profile_case(
    client: EngineClient, case: Case, digests: Sequence[str], profile: CoreProfile, *, seed: int
) -> dict[str, Any]:
    """Milliseconds of a step, or of a prompt, by operation."""
    streams = [client.generate(request) for request in _requests(client, case, digests, seed)]
    profile.clear()
    before = await client.stats()
    if case.decodes:
        await asyncio.gather(*(anext(stream) for stream in streams))
        profile.clear()
        before = await client.stats()
    await asyncio.gather(*(_drain(stream) for stream in streams))
    after = await client.stats()
    count = after.steps - before.steps if case.decodes else case.rows
    if case.decodes and count > case.new_tokens:
        raise SystemExit(f"{case.name}: the rows did not decode together, in {count} steps")
    total = 1e3 * (after.step_seconds - before.step_seconds) / count
    longest_first = sorted(profile.seconds.items(), key=lambda item: -item[1])
    spent = {name: 1e3 * seconds / count for name, seconds in longest_first}
    return {
        "step_ms": round(total, 3),
        "operations_ms": {name: round(value, 3) for name, value in spent.items()},
        "rest_ms": round(total - sum(spent.values()), 3),
        "calls": {name: round(profile.calls[name] / count, 1) for name in spent},
    }


def _requests(
    client: EngineClient, case: Case, digests: Sequence[str], seed: int
) -> Iterable[GenerationRequest]:
    sampling = SamplingParams(max_tokens=case.new_tokens, temperature=0, ignore_eos=True)
    for row in range(case.rows):
        draw = random.Random(f"{seed} {row}")
        share = AdapterShare(digests[row % case.adapters]) if case.adapters else None
        yield GenerationRequest(
            id=f"{case.name} {seed} {row}",
            prompt=tuple(
                draw.randrange(4, client.info.vocab_size) for _ in range(case.prompt_tokens)
            ),
            sampling=sampling,
            adapters=(share,) if share else (),
        )


async def _drain(stream: AsyncIterator[Any]) -> None:
    async for _ in stream:
        pass


def least(model: ModelConfig, case: Case, limits: CpuLimits) -> dict[str, Any]:
    """What the machine needs for the weights' bytes and multiply-adds, the longer of the two."""
    projections = model.projections()
    linear = sum(p.in_features * p.out_features for p in projections)
    head = model.vocab_size * model.hidden_size
    factors = RANK * sum(len(p.slices) * p.in_features + p.out_features for p in projections)
    rows = case.rows if case.decodes else case.rows * case.prompt_tokens
    read = linear * _NF4_BYTES + head * (_NF4_BYTES if case.quantize_head else 2)
    read += 2 * case.adapters * factors
    # A prompt asks the head for its last token alone.
    operations = 2 * (linear * rows + head * case.rows)
    peak = limits.bfloat16_flops_per_second or limits.flops_per_second
    times = {"bytes": read / limits.read_bytes_per_second, "operations": operations / peak}
    bound = max(times, key=times.__getitem__)
    return {"least_ms": round(1e3 * times[bound], 3), "bound": bound}


async def measure(
    config: EngineConfig,
    cases: Sequence[Case],
    digests: Sequence[str],
    profile: CoreProfile,
    repeats: int,
) -> list[dict[str, Any]]:
    """The fastest of ``repeats`` of each case; on a shared host the rest is noise."""
    found = []
    client = EngineClient.in_this_process(config)
    await client.start()
    try:
        for case in cases:
            for digest in digests[: case.adapters]:
                await client.warm(digest)
            runs = [
                await profile_case(client, case, digests, profile, seed=repeat)
                for repeat in range(repeats + 1)
            ]
            found.append(min(runs[1:], key=lambda run: run["step_ms"]))
            print(f"  {case.name}: {found[-1]}", flush=True)
    finally:
        await client.stop()
    return found


def main() -> None:
    arguments = _arguments()
    core = load_core()
    if core is None:
        raise SystemExit("the compiled core is not built; see `multiflora doctor`")
    cases = SMOKE if arguments.smoke else FULL
    limits = CpuLimits(1e9, 1e9) if arguments.smoke else measure_limits()
    profile = CoreProfile(core)
    results = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        base = base_folder("demo" if arguments.smoke else "qwen2.5-0.5b", work)
        model = load_model_config(base)
        most = max(case.adapters for case in cases)
        digests = publish_versions(work, model, ranks=[RANK] * most, modules=ALL_LINEARS, seed=1)
        for quantize_head in sorted({case.quantize_head for case in cases}):
            chosen = [case for case in cases if case.quantize_head == quantize_head]
            config = EngineConfig(
                base=BaseConfig(model=str(base), quantize_head=quantize_head),
                device="cpu",
                threads=arguments.threads,
                data_dir=str(work),
                max_model_len=640,
                cache=CacheConfig(memory_bytes=1 << 29, prefix_caching=False),
                scheduler=SchedulerConfig(max_num_requests=max(case.rows for case in cases)),
            )
            found = asyncio.run(measure(config, chosen, digests, profile, arguments.repeats))
            for case, run in zip(chosen, found, strict=True):
                bound = least(model, case, limits)
                share = round(bound["least_ms"] / run["step_ms"], 3)
                results.append({**asdict(case), **run, **bound, "of_least": share})
    record = {
        "arguments": vars(arguments),
        "core": core.tier,
        "rank": RANK,
        "read_gb_per_s": round(limits.read_bytes_per_second / 1e9, 1),
        "peak_gflops": round(
            (limits.bfloat16_flops_per_second or limits.flops_per_second) / 1e9, 1
        ),
        "cases": results,
    }
    print(f"saved {save('step-profile-smoke' if arguments.smoke else 'step-profile', record)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="the demo base, to see that it runs")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.repeats, arguments.threads = 1, 1
    return arguments


if __name__ == "__main__":
    main()
