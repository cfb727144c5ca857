"""`multiflora estimate`: what serving and training a base will take of memory, before it does."""

import argparse
import re
from pathlib import Path
from typing import Any, Final

from multiflora.engine.config import BaseConfig, EngineConfig
from multiflora.engine.memory_plan import plan_memory
from multiflora.engine.models.registry import load_model_config
from multiflora.engine.training.config import BatchSettings, LoraSettings, TrainingSettings
from multiflora.engine.training.estimate import TrainingMemory, estimate_memory
from multiflora.engine.training.rule_of_thumb import (
    OPTIMIZER_STATES,
    count_parameters,
    full_training,
    serving_bytes,
)

from ..size import parse_size
from .argument import DEMO_BASE_NAME, find_model, typed

_MIB: Final = 1 << 20
_COUNT: Final = re.compile(r"(\d+(?:\.\d+)?)([MB])", re.IGNORECASE)
_UNITS: Final = {"M": 10**6, "B": 10**9}
# Weights of textbooks are float16 or bfloat16.
_ITEM: Final = 2


def add_to(commands: "argparse._SubParsersAction[Any]") -> None:
    """Register the command."""
    parser = commands.add_parser(
        "estimate",
        help="print the memory that serving and training take",
        epilog="A number of parameters such as 13B is answered by rules of thumb alone.",
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    option = parser.add_argument
    option(
        *("model",),
        nargs="?",
        default=DEMO_BASE_NAME,
        metavar="BASE",
        help="folder, hub id or number of parameters",
    )
    option("--rank", type=int, default=16, metavar="R", help="of the adapter; default: 16")
    option("--micro-batch-tokens", type=int, default=4096, metavar="N", help="default: 4096")
    option("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    option(
        "--memory",
        type=typed(parse_size),
        metavar="SIZE",
        help="of the accelerator, such as 80GiB; needed with --device cuda",
    )


def run(*, model: str, rank: int, micro_batch_tokens: int, device: Any, memory: int | None) -> int:
    """Print the plans; nothing is loaded."""
    if (device == "cuda") != (memory is not None):
        raise ValueError("--device cuda and --memory SIZE, that of the accelerator, go together")
    if (count := parse_count(model)) is not None and not Path(model).exists():
        print(render_rules(count))
        return 0
    base = find_model(model)
    config = load_model_config(base.folder)
    engine = EngineConfig(base=BaseConfig(model=str(base.folder)), device=device)
    plan = plan_memory(engine, config, checkpoint=Path(base.folder), available_bytes=memory)
    settings = TrainingSettings(
        lora=LoraSettings(rank=rank, alpha=2.0 * rank),
        batch=BatchSettings(micro_batch_tokens=micro_batch_tokens),
    )
    kernels = "triton" if device == "cuda" else "cpu"
    needed = estimate_memory(config, settings, dtype=plan.dtype, kernels=kernels)
    count = count_parameters(config)
    print(f"serving\n{plan.render()}\n")
    print(render(needed, base_bytes=plan.base_bytes, rank=rank, tokens=micro_batch_tokens))
    print(f"share      {100 * needed.factors / 4 / count:>9.2f} %    of the base's parameters\n")
    print(render_rules(count))
    return 0


def parse_count(text: str) -> int | None:
    """A number of parameters such as 13B or 350M; None if it is none."""
    match = _COUNT.fullmatch(text)
    return None if match is None else round(float(match[1]) * _UNITS[match[2].upper()])


def render(memory: TrainingMemory, *, base_bytes: int, rank: int, tokens: int) -> str:
    """The training plan, one part per line."""
    activations = memory.device_bytes - memory.factors - memory.gradients - memory.moments
    rows = (
        ("base", base_bytes, "the one that serves"),
        ("adapter", memory.factors, "A and B in float32"),
        ("gradients", memory.gradients, ""),
        ("optimizer", memory.moments, "two states per parameter"),
        ("activations", activations, "between layers, and one layer or the loss"),
        ("beside", memory.device_bytes, "what the base does not have already"),
        ("total", base_bytes + memory.device_bytes, ""),
        ("host", memory.host, "the copy that checkpoints are written from"),
    )
    lines = [f"{name:<11}{size / _MIB:>9.1f} MiB  {note}".rstrip() for name, size, note in rows]
    return "\n".join([f"training at rank {rank}, {tokens} tokens in a micro-batch", *lines])


def render_rules(num_parameters: int) -> str:
    """What textbooks say of a base with so many parameters."""
    weights = num_parameters * _ITEM
    rows = [
        ("weights", weights),
        ("serving, weights and a fifth", serving_bytes(num_parameters, item=_ITEM)),
    ]
    for optimizer, num_states in OPTIMIZER_STATES.items():
        name = f"full training, {optimizer} ({num_states} states)"
        rows.append((name, full_training(num_parameters, item=_ITEM, optimizer=optimizer).total))
    unit, divisor = ("GB", 1e9) if weights >= 1e9 else ("MB", 1e6)
    lines = [f"{name:<35}{size / divisor:>8.1f} {unit}" for name, size in rows]
    title = f"{num_parameters / 1e6:,.1f}M parameters of {_ITEM} bytes, by rule of thumb"
    return "\n".join([title, *lines])
