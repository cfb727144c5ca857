"""What do adapters cost that are more than LoRA on the linears?

Random adapters that PEFT makes, of each kind two versions: how long one takes from the disk to the
device, checked and stored before, and what a decoding step of 8 requests on both takes. LoRA of the
same rank on all linears is what the others are compared with; all kinds take turns.

    python -m benchmarks.serving.bench_adapter_kinds [--base qwen2.5-0.5b] [--smoke]
"""

import argparse
import asyncio
import statistics
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import save
from benchmarks.shape import ALL_LINEARS
from multiflora.adapters.intake import import_adapter
from multiflora.adapters.store import AdapterStore
from multiflora.engine.client import EngineClient
from multiflora.engine.config import AdapterConfig, BaseConfig, CacheConfig, EngineConfig
from multiflora.engine.models.registry import load_model_config
from multiflora.server.size import parse_size

from .bench_slopes import Point, step_seconds
from .engine_load import BASES, base_folder, engine

RANK, ROWS, VERSIONS, PROMPT_TOKENS = 16, 8, 2, 32
_LORA: Final[dict[str, Any]] = {"r": RANK, "lora_alpha": RANK}
_PLAIN: Final = {**_LORA, "target_modules": list(ALL_LINEARS)}
# By what the report calls it: PEFT's class, and what it is told.
KINDS: Final[Mapping[str, tuple[str, dict[str, Any]]]] = {
    "LoRA on all linears": ("LoraConfig", _PLAIN),
    "LoRA with a bias on B": ("LoraConfig", {**_PLAIN, "lora_bias": True}),
    "DoRA": ("LoraConfig", {**_PLAIN, "use_dora": True}),
    "(IA)^3": (
        "IA3Config",
        {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    ),
    "LoRA on the head too": (
        "LoraConfig",
        {**_LORA, "target_modules": [*ALL_LINEARS, "lm_head"]},
    ),
    "LoRA on the embedding too": (
        "LoraConfig",
        {**_LORA, "target_modules": [*ALL_LINEARS, "embed_tokens"]},
    ),
    "a head of its own": ("LoraConfig", {**_PLAIN, "modules_to_save": ["lm_head"]}),
}
PLAIN: Final = next(iter(KINDS))


def write_adapters(base: Path, root: Path) -> dict[str, list[Path]]:
    """``VERSIONS`` folders of every kind, as PEFT saves them."""
    folders: dict[str, list[Path]] = {}
    with warnings.catch_warnings():
        # PEFT's, of biases: they can be merged into no linear without one, and have one dimension.
        warnings.simplefilter("ignore", UserWarning)
        for index, (name, (config_class, settings)) in enumerate(KINDS.items()):
            folders[name] = [root / f"{index}-{number}" for number in range(VERSIONS)]
            model = _adapted(base, config_class, settings)
            for number, folder in enumerate(folders[name]):
                _disturb(model, seed=VERSIONS * index + number)
                model.save_pretrained(str(folder), save_embedding_layers=False)
    return folders


def _adapted(base: Path, config_class: str, settings: Mapping[str, Any]) -> Any:
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    config = getattr(peft, config_class)(task_type="CAUSAL_LM", **settings)
    return peft.get_peft_model(model, config)


def _disturb(model: Any, *, seed: int) -> None:
    """Add noise to whatever the config trains."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.add_(0.02 * noise.to(parameter.dtype))


async def measure(
    config: EngineConfig, digests: Mapping[str, Sequence[str]], arguments: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """By kind: seconds of loads, and medians of steps in ms."""
    loads: dict[str, list[float]] = {name: [] for name in digests}
    steps: dict[str, list[float]] = {name: [] for name in digests}
    point = Point(x=1, rows=ROWS, adapters=VERSIONS, rank=RANK, prompt_tokens=PROMPT_TOKENS)
    async with engine(config) as client:
        for _ in range(arguments.repeats):
            for name, versions in digests.items():
                loads[name] += [await _load_seconds(client, digest) for digest in versions]
                steps[name] += await step_seconds(
                    client, point, versions, tokens=arguments.tokens, repeats=1
                )
                for digest in versions:
                    await client.unload_version(digest)
                print(f"  {name}: {1e3 * steps[name][-1]:.2f} ms a step", flush=True)
    return {
        name: {
            "load_seconds": round(statistics.median(loads[name]), 4),
            "step_ms": round(1e3 * statistics.median(steps[name]), 3),
            "loads": [round(value, 4) for value in loads[name]],
            "steps_ms": [round(1e3 * value, 3) for value in steps[name]],
        }
        for name in digests
    }


async def _load_seconds(client: EngineClient, digest: str) -> float:
    started = time.perf_counter()
    await client.warm(digest)
    return time.perf_counter() - started


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        base = base_folder(arguments.base, work)
        model = load_model_config(base)
        store, projections = AdapterStore(work), model.adapter_projections()
        digests = {
            name: [import_adapter(path, projections=projections, store=store) for path in paths]
            for name, paths in write_adapters(base, work / "adapters").items()
        }
        config = EngineConfig(
            base=BaseConfig(model=str(base)),
            device="cpu",
            data_dir=str(work),
            max_model_len=512,
            cache=CacheConfig(memory_bytes=parse_size("256MiB"), prefix_caching=False),
            adapter=AdapterConfig(memory_bytes=parse_size("2GiB")),
        )
        kinds = asyncio.run(measure(config, digests, arguments))
        weights = sum(
            projection.out_features * projection.in_features for projection in model.projections()
        )
    record = {
        "model": f"{arguments.base} shape, random weights, NF4",
        "arguments": vars(arguments),
        "rank": RANK,
        "rows": ROWS,
        "num_versions": VERSIONS,
        "linear_weights": weights,
        "kinds": kinds,
        "step_over_lora": {
            name: round(one["step_ms"] / kinds[PLAIN]["step_ms"], 3) for name, one in kinds.items()
        },
    }
    path = save("adapter-kinds-smoke" if arguments.smoke else "adapter-kinds", record)
    print(f"saved {path}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", choices=BASES, default="qwen2.5-0.5b")
    parser.add_argument("--tokens", type=int, default=24, help="decoded together by all rows")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="a small base, to see that it runs")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.base, arguments.tokens, arguments.repeats = "small", 4, 1
    return arguments


if __name__ == "__main__":
    main()
