"""How fast are 1 and 8 concurrent requests, on the base alone and on 8 distinct adapters?

Ours beside transformers + PEFT's mixed-batch generation (``adapter_names``) on the same NF4 base,
in one run. Both decode greedily the same number of tokens from the same prompts.
"""

import argparse
import asyncio
import random
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from benchmarks.harness import Timing, interleave, save
from benchmarks.shape import LLAMA_1B, QWEN_0_5B, build_adapters, build_base
from multiflora.adapters.intake import import_adapter
from multiflora.adapters.store import AdapterStore
from multiflora.engine.client import EngineClient
from multiflora.engine.config import BaseConfig, CacheConfig, EngineConfig
from multiflora.engine.models.registry import load_model_config
from multiflora.engine.request import AdapterShare, GenerationRequest, SamplingParams

CONCURRENCIES = (1, 8)
RANK = 16
SHAPES = {"qwen2.5-0.5b": QWEN_0_5B, "llama-3.2-1b": LLAMA_1B}


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


class Peer:
    """transformers + PEFT + bitsandbytes, all adapters loaded, ``adapter_names`` per row."""

    def __init__(
        self,
        base: Path,
        adapters: dict[str, Path],
        dtype: str,
        prompts: list[list[int]],
        device: str,
    ) -> None:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        self._torch = torch
        self._device = device
        compute = getattr(torch, dtype)
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
        model = AutoModelForCausalLM.from_pretrained(
            base, quantization_config=quantization, dtype=compute, device_map=device
        )
        names = list(adapters)
        peft_model = PeftModel.from_pretrained(
            model, str(adapters[names[0]]), adapter_name=names[0]
        )
        for name in names[1:]:
            peft_model.load_adapter(str(adapters[name]), adapter_name=name)
        self._model = peft_model.eval()
        self._names = names
        self._prompts = prompts

    def generate(self, concurrency: int, num_tokens: int, *, with_adapters: bool) -> None:
        names = self._names[:concurrency] if with_adapters else ["__base__"] * concurrency
        ids = self._torch.tensor(self._prompts[:concurrency], device=self._device)
        with self._torch.inference_mode():
            out = self._model.generate(
                input_ids=ids,
                attention_mask=self._torch.ones_like(ids),
                adapter_names=names,
                max_new_tokens=num_tokens,
                min_new_tokens=num_tokens,
                do_sample=False,
            )
        assert out.shape == (concurrency, len(self._prompts[0]) + num_tokens)


def main() -> None:
    arguments = _parse()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(arguments.work or scratch)
        base = build_base(root / arguments.shape, SHAPES[arguments.shape])
        adapters = build_adapters(base, root / "adapters", count=max(CONCURRENCIES), rank=RANK)
        prompts = _prompts(max(CONCURRENCIES), arguments.prompt_tokens)
        ours = Ours(base, adapters, root / "data", prompts, arguments.device)
        peer = Peer(base, adapters, ours.info.dtype, prompts, arguments.device)
        try:
            timings = interleave(_cells(ours, peer, arguments.tokens), repeats=arguments.repeats)
        finally:
            ours.close()
    record = _record(timings, arguments, ours.info)
    path = save("adapter-mix" if arguments.device == "cpu" else "adapter-mix-cuda", record)
    _print(record, path)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=32, help="new tokens per request")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-0.5b")
    parser.add_argument("--work", help="keep the random model here and use it again")
    return parser.parse_args()


def _prompts(count: int, length: int) -> list[list[int]]:
    generator = random.Random(0)
    return [[generator.randrange(1, 120_000) for _ in range(length)] for _ in range(count)]


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
