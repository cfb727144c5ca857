"""`multiflora estimate`: what serving and training a base will take of memory, before it does."""

import argparse
from pathlib import Path
from typing import Any

from multiflora.engine.config import BaseConfig, EngineConfig
from multiflora.engine.memory_plan import plan_memory
from multiflora.engine.models.registry import load_model_config
from multiflora.engine.training.config import BatchSettings, LoraSettings, TrainingSettings
from multiflora.engine.training.estimate import TrainingMemory, estimate_memory

from .argument import DEMO_BASE_NAME, find_model

_MIB = 1 << 20


def add_to(commands: "argparse._SubParsersAction[Any]") -> None:
    """Register the command."""
    parser = commands.add_parser(
        "estimate", help="print the memory that serving and training take", allow_abbrev=False
    )
    parser.set_defaults(run=run)
    option = parser.add_argument
    option("model", nargs="?", default=DEMO_BASE_NAME, metavar="BASE", help="folder or hub id")
    option("--rank", type=int, default=16, metavar="R", help="of the adapter; default: 16")
    option("--micro-batch-tokens", type=int, default=4096, metavar="N", help="default: 4096")
    option("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")


def run(*, model: str, rank: int, micro_batch_tokens: int, device: Any) -> int:
    """Print both plans; nothing is loaded."""
    base = find_model(model)
    config = load_model_config(base.folder)
    engine = EngineConfig(base=BaseConfig(model=str(base.folder)), device=device)
    is_gpu = device == "cuda"
    settings = TrainingSettings(
        lora=LoraSettings(rank=rank, alpha=2.0 * rank),
        batch=BatchSettings(micro_batch_tokens=micro_batch_tokens),
    )
    memory = estimate_memory(
        config,
        settings,
        dtype="bfloat16" if is_gpu else "float32",
        kernels="triton" if is_gpu else "cpu",
    )
    print(plan_memory(engine, config, checkpoint=Path(base.folder)).render())
    print(render(memory, rank=rank, tokens=micro_batch_tokens))
    return 0


def render(memory: TrainingMemory, *, rank: int, tokens: int) -> str:
    """The training plan in a few lines, in MiB."""
    state = memory.factors + memory.moments + memory.gradients
    return "\n".join(
        [
            f"training at rank {rank}, {tokens} tokens in a micro-batch, beside the base:",
            f"  factors, moments, gradients  {state / _MIB:10.1f} MiB",
            f"  kept between layers          {memory.boundaries / _MIB:10.1f} MiB",
            f"  one layer, or the loss       {max(memory.layer, memory.loss) / _MIB:10.1f} MiB",
            f"  total on the device          {memory.device_bytes / _MIB:10.1f} MiB",
            f"  total in host memory         {memory.host / _MIB:10.1f} MiB",
        ]
    )
