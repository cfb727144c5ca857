"""How fast are 1 and 8 concurrent requests, on the base alone and on 8 distinct adapters?

Ours beside transformers + PEFT's mixed-batch generation (``adapter_names``) on the same NF4 base,
in one run: each side has a process of its own, and they take turns. Both decode greedily the same
number of tokens from the same prompts.
"""

import argparse
import asyncio
import json
import random
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.harness import Timing, interleave, save
from benchmarks.peer_environment import require_peer_python
from benchmarks.peer_process import PeerProcess
from benchmarks.shape import LLAMA_1B, QWEN_0_5B, SMALL, build_adapters, build_base
from multiflora.adapters.intake import import_adapter
from multiflora.adapters.store import AdapterStore
from multiflora.engine.client import EngineClient
from multiflora.engine.config import BaseConfig, CacheConfig, EngineConfig
from multiflora.engine.models.registry import load_model_config
from multiflora.engine.request import AdapterShare, GenerationRequest, SamplingParams

CONCURRENCIES = (1, 8)
RANK = 16
SHAPES = {"qwen2.5-0.5b": QWEN_0_5B, "llama-3.2-1b": LLAMA_1B, "small": SMALL}


class Ours:
    """A multiflora engine in its own process, driven through its client."""

    def __init__(
        self,
        base: Path,
        adapters: dict[str, Path],
        data: Path,
        prompts: list[list[int]],
        device: str,
    ) -> None:
        projections = load_model_config(base).adapter_projections()
        store = AdapterStore(data)
        self._digests = [
            import_adapter(path, projections=projections, store=store) for path in adapters.values()
        ]
        self._prompts = prompts
        self._number = 0
        self._loop = asyncio.new_event_loop()
        # Prefix caching is off: the peer computes every prompt, so must we.
        config = EngineConfig(
            base=BaseConfig(model=str(base)),
            device=device,  # type: ignore[arg-type]
            data_dir=str(data),
            max_model_len=512,
            cache=CacheConfig(memory_bytes=512 << 20, prefix_caching=False),
        )
        self._client = EngineClient.in_process_of_its_own(config)
        self.info = self._await(self._client.start())
        for digest in self._digests:
            self._await(self._client.load_version(digest))

    def _await(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(work)

    def generate(self, concurrency: int, num_tokens: int, *, with_adapters: bool) -> None:
        self._await(self._generate(concurrency, num_tokens, with_adapters))

    async def _generate(self, concurrency: int, num_tokens: int, with_adapters: bool) -> None:
        requests = []
        for index in range(concurrency):
            self._number += 1
            share = (AdapterShare(self._digests[index]),) if with_adapters else ()
            requests.append(
                GenerationRequest(
                    id=str(self._number),
                    prompt=tuple(self._prompts[index]),
                    sampling=SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True),
                    adapters=share,
                )
            )
        counts = await asyncio.gather(*(self._count(request) for request in requests))
        assert counts == [num_tokens] * concurrency

    async def _count(self, request: GenerationRequest) -> int:
        return sum([len(event.tokens) async for event in self._client.generate(request)])

    def close(self) -> None:
        self._await(self._client.stop())
        self._loop.close()


class Peer:
    """transformers + PEFT + bitsandbytes, in a process and an environment of its own."""

    def __init__(
        self,
        python: Path,
        base: Path,
        adapters: dict[str, Path],
        dtype: str,
        prompts: list[list[int]],
        device: str,
    ) -> None:
        given = {
            "base": str(base),
            "adapters": {name: str(folder) for name, folder in adapters.items()},
            "dtype": dtype,
            "prompts": prompts,
            "device": device,
        }
        self._names = list(adapters)
        self._process = PeerProcess(python, "benchmarks.serving.peft_side", json.dumps(given))
        self.versions = self._process.versions

    def generate(self, concurrency: int, num_tokens: int, *, with_adapters: bool) -> None:
        names = self._names[:concurrency] if with_adapters else ["__base__"] * concurrency
        self._process.ask(names, num_tokens)

    def close(self) -> None:
        self._process.close()


def main() -> None:
    arguments = _parse()
    python = require_peer_python("peft")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(arguments.work or scratch)
        base = build_base(root / arguments.shape, SHAPES[arguments.shape])
        adapters = build_adapters(base, root / "adapters", count=max(CONCURRENCIES), rank=RANK)
        vocab_size = SHAPES[arguments.shape]["vocab_size"]
        prompts = _prompts(max(CONCURRENCIES), arguments.prompt_tokens, vocab_size)
        with ExitStack() as stack:
            ours = Ours(base, adapters, root / "data", prompts, arguments.device)
            stack.callback(ours.close)
            peer = Peer(python, base, adapters, ours.info.dtype, prompts, arguments.device)
            stack.callback(peer.close)
            timings = interleave(_cells(ours, peer, arguments.tokens), repeats=arguments.repeats)
    record = {**_record(timings, arguments, ours.info), "peer_versions": peer.versions}
    name = "adapter-mix" if arguments.device == "cpu" else "adapter-mix-cuda"
    path = save(f"{name}-smoke" if arguments.smoke else name, record)
    _print(record, path)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=32, help="new tokens per request")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-0.5b")
    parser.add_argument("--work", help="keep the random model here and use it again")
    parser.add_argument("--smoke", action="store_true", help="a small base, to see that it runs")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.shape, arguments.tokens, arguments.repeats = "small", 4, 1
    return arguments


def _prompts(count: int, length: int, vocab_size: int) -> list[list[int]]:
    generator = random.Random(0)
    return [[generator.randrange(1, vocab_size) for _ in range(length)] for _ in range(count)]


def _cells(ours: Ours, peer: Peer, num_tokens: int) -> dict[str, Callable[[], None]]:
    """Every cell once untimed, then ready to be timed."""

    def cell(side: Ours | Peer, concurrency: int, with_adapters: bool) -> Callable[[], None]:
        side.generate(concurrency, 2, with_adapters=with_adapters)
        return lambda: side.generate(concurrency, num_tokens, with_adapters=with_adapters)

    return {
        f"{name} {'adapters' if with_adapters else 'base'} x{concurrency}": cell(
            side, concurrency, with_adapters
        )
        for concurrency in CONCURRENCIES
        for with_adapters in (False, True)
        for name, side in (("ours", ours), ("peft", peer))
    }


def _record(timings: dict[str, Timing], arguments: argparse.Namespace, info: Any) -> dict[str, Any]:
    speeds = {
        name: int(name.rsplit("x", 1)[1]) * arguments.tokens / timing.median
        for name, timing in timings.items()
    }
    ratios = {
        f"ours / peft, adapters x{c}": speeds[f"ours adapters x{c}"] / speeds[f"peft adapters x{c}"]
        for c in CONCURRENCIES
    } | {
        f"ours adapters / ours base x{c}": speeds[f"ours adapters x{c}"] / speeds[f"ours base x{c}"]
        for c in CONCURRENCIES
    }
    return {
        "model": f"{arguments.shape} shape, random weights, NF4 with double quantization",
        "adapters": f"{max(CONCURRENCIES)} distinct, rank {RANK}, all linears",
        "kernels": info.kernels,
        "dtype": info.dtype,
        "prompt_tokens": arguments.prompt_tokens,
        "new_tokens": arguments.tokens,
        "tokens_per_second": {name: round(value, 2) for name, value in speeds.items()},
        "ratios": {name: round(value, 2) for name, value in ratios.items()},
        "seconds": {name: [round(s, 3) for s in t.seconds] for name, t in timings.items()},
    }


def _print(record: dict[str, Any], path: Path) -> None:
    print(
        f"{record['model']}; {record['adapters']}; {record['dtype']}, kernels {record['kernels']}"
    )
    for name, value in record["tokens_per_second"].items():
        print(f"  {name:22} {value:8.2f} tokens/s")
    for name, value in record["ratios"].items():
        print(f"  {name:32} {value:6.2f}")
    print(f"saved {path}")


if __name__ == "__main__":
    main()
