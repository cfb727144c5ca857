"""How long does a start take, the first time and from the prepared cache?

A random model in the shape of Qwen2.5-0.5B or Llama-3.2-1B: the first start hashes, quantizes and
stores it, the second maps what the first has stored. Each start is an engine process of its own.

    python -m benchmarks.serving.bench_start [--shapes qwen2.5-0.5b,llama-3.2-1b] [--smoke]
"""

import argparse
import asyncio
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import save
from benchmarks.shape import LLAMA_1B, QWEN_0_5B, SMALL, build_base
from multiflora.engine.client import EngineClient
from multiflora.engine.config import BaseConfig, CacheConfig, EngineConfig
from multiflora.engine.request import GenerationRequest, SamplingParams


@dataclass(frozen=True, slots=True)
class Shape:
    """A real model by name, and its sizes."""

    model: str
    sizes: dict[str, Any]


SHAPES: Final = {
    "small": Shape("Small", SMALL),
    "qwen2.5-0.5b": Shape("Qwen2.5-0.5B", QWEN_0_5B),
    "llama-3.2-1b": Shape("Llama-3.2-1B", LLAMA_1B),
}


def main() -> None:
    arguments = _arguments()
    for name in arguments.shapes:
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(arguments.work or scratch)
            base = build_base(root / name, SHAPES[name].sizes)
            data = root / "start-data"
            shutil.rmtree(data, ignore_errors=True)
            starts = {which: asyncio.run(_start(base, data)) for which in ("first", "second")}
        ratio = starts["second"]["ready_seconds"] / starts["first"]["ready_seconds"]
        record = {
            "model": f"{SHAPES[name].model} shape, random weights in bf16, NF4 with double "
            "quantization",
            "arguments": vars(arguments),
            "starts": starts,
            "second_over_first": round(ratio, 3),
        }
        path = save("start-smoke" if arguments.smoke else "start", record)
        for which, seconds in starts.items():
            print(f"{name} {which:8} {seconds}")
        print(f"second / first {ratio:.3f}; saved {path}", flush=True)
        # Records are named by the second.
        time.sleep(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = "qwen2.5-0.5b,llama-3.2-1b"
    parser.add_argument("--shapes", default=default, help=f"default: {default}")
    parser.add_argument("--work", help="keep the random models here and use them again")
    parser.add_argument("--smoke", action="store_true", help="a small model: that it runs")
    arguments = parser.parse_args()
    arguments.shapes = ["small"] if arguments.smoke else arguments.shapes.split(",")
    if unknown := set(arguments.shapes) - set(SHAPES):
        parser.error(f"{sorted(unknown)} are none of {', '.join(SHAPES)}")
    return arguments


async def _start(base: Path, data: Path) -> dict[str, Any]:
    """Seconds to ready, and to the first token after it (which touches every weight)."""
    config = EngineConfig(
        base=BaseConfig(model=str(base)),
        device="cpu",
        data_dir=str(data),
        max_model_len=512,
        cache=CacheConfig(memory_bytes=256 << 20),
    )
    client = EngineClient.in_process_of_its_own(config)
    started = time.perf_counter()
    info = await client.start()
    ready = time.perf_counter()
    sampling = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)
    request = GenerationRequest(id="first", prompt=(1, 2, 3), sampling=sampling)
    _ = [event async for event in client.generate(request)]
    first_token = time.perf_counter()
    await client.stop()
    return {
        "ready_seconds": round(ready - started, 2),
        "load_seconds": round(info.load_seconds, 2),
        "first_token_seconds": round(first_token - ready, 2),
    }


if __name__ == "__main__":
    main()
