"""How long does a start take, the first time and from the prepared cache?

A random model in the shape of Llama-3.2-1B: the first start hashes, quantizes and stores it, the
second maps what the first has stored. Each start is an engine process of its own.
"""

import argparse
import asyncio
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import save
from benchmarks.shape import LLAMA_1B, build_base
from multiflora.engine.client import EngineClient
from multiflora.engine.config import BaseConfig, CacheConfig, EngineConfig
from multiflora.engine.request import GenerationRequest, SamplingParams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", help="keep the random model here and use it again")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(arguments.work or scratch)
        base = build_base(root / "llama-1b", LLAMA_1B)
        data = root / "start-data"
        shutil.rmtree(data, ignore_errors=True)
        starts = {name: asyncio.run(_start(base, data)) for name in ("first", "second")}
    ratio = starts["second"]["ready_seconds"] / starts["first"]["ready_seconds"]
    record = {
        "model": "Llama-3.2-1B shape, random weights in bf16, NF4 with double quantization",
        "starts": starts,
        "second_over_first": round(ratio, 3),
    }
    path = save("start", record)
    for name, seconds in starts.items():
        print(f"{name:8} {seconds}")
    print(f"second / first {ratio:.3f}; saved {path}")


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
