"""What does one step of the optimizer take, with moments in float32 and in 8 bits?

The factors of rank 16 on all linears of Qwen2.5-0.5B's shape, in one flat tensor for every side.
Each step clips the gradient by its norm, moves the factors and clears the gradient. Ours beside
``torch.optim.AdamW`` (its default and its fused form) and bitsandbytes' ``AdamW8bit``, in turn.

    python -m benchmarks.training.bench_optimizer [--threads 2] [--repeats 15] [--smoke]
"""

import argparse
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from bitsandbytes.optim.adamw import AdamW8bit

from benchmarks.harness import save
from benchmarks.shape import QWEN_0_5B, SMALL
from multiflora.engine.models.config import ModelConfig
from multiflora.engine.models.registry import load_model_config
from multiflora.engine.training.config import LoraSettings, OptimizerKind, OptimizerSettings
from multiflora.engine.training.factors import TrainedFactors
from multiflora.engine.training.optimizer import Optimizer

RANK, RATE, MAX_NORM = 16, 1e-4, 1.0
OURS: Final[dict[str, OptimizerKind]] = {
    "multiflora adamw": "adamw",
    "multiflora adamw_8bit": "adamw_8bit",
}
# Warm-up, of memory and of what libraries import at their first step.
_UNTIMED: Final = 2


class Side:
    """One flat tensor of factors, a gradient, and a step over both."""

    def __init__(self, gradient: torch.Tensor, step: Callable[[int], None]) -> None:
        self._gradient = gradient
        self._step = step
        self._number = 0

    @property
    def num_elements(self) -> int:
        return self._gradient.numel()

    def timed_step(self) -> float:
        """Seconds of one step, on a gradient that is drawn before."""
        self._gradient.normal_(std=1e-3)
        self._number += 1
        started = time.perf_counter()
        self._step(self._number)
        return time.perf_counter() - started


def our_side(model: ModelConfig, kind: OptimizerKind) -> Side:
    lora = LoraSettings(rank=RANK, alpha=RANK)
    factors = TrainedFactors(model.projections(), lora.modules(model), device=torch.device("cpu"))
    optimizer = Optimizer(factors, OptimizerSettings(kind=kind, max_grad_norm=MAX_NORM))
    assert factors.gradient is not None
    return Side(factors.gradient, lambda number: _drain(optimizer, number))


def _drain(optimizer: Optimizer, number: int) -> None:
    """All quanta of a step, which the loop of an engine takes one by one."""
    deque(optimizer.step(number, RATE), maxlen=0)


def their_side(num_elements: int, make: Callable[[list[torch.nn.Parameter]], Any]) -> Side:
    factors = torch.nn.Parameter(torch.zeros(num_elements))
    factors.grad = torch.zeros(num_elements)
    optimizer = make([factors])

    def step(_: int) -> None:
        torch.nn.utils.clip_grad_norm_([factors], MAX_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    return Side(factors.grad, step)


def make_sides(model: ModelConfig) -> dict[str, Side]:
    ours = {name: our_side(model, kind) for name, kind in OURS.items()}
    num_elements = next(iter(ours.values())).num_elements
    theirs = {
        "torch AdamW": partial(torch.optim.AdamW, lr=RATE),
        "torch AdamW, fused": partial(torch.optim.AdamW, lr=RATE, fused=True),
        "bitsandbytes AdamW8bit": partial(AdamW8bit, lr=RATE),
    }
    return ours | {name: their_side(num_elements, make) for name, make in theirs.items()}


def model_of(shape: dict[str, Any]) -> ModelConfig:
    from transformers import Qwen2Config

    with tempfile.TemporaryDirectory() as folder:
        config = Qwen2Config(**shape, bos_token_id=None, eos_token_id=0, pad_token_id=0)
        config.architectures = ["Qwen2ForCausalLM"]
        config.save_pretrained(folder)
        return load_model_config(Path(folder))


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    sides = make_sides(model_of(SMALL if arguments.smoke else QWEN_0_5B))
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(arguments.repeats + _UNTIMED):
        for name, side in sides.items():
            taken = side.timed_step()
            if repeat >= _UNTIMED:
                seconds[name].append(taken)
    medians = {name: 1e3 * statistics.median(found) for name, found in seconds.items()}
    record = {
        "arguments": vars(arguments),
        "num_parameters": next(iter(sides.values())).num_elements,
        "median_ms": {name: round(value, 2) for name, value in medians.items()},
        "seconds": {name: [round(s, 5) for s in found] for name, found in seconds.items()},
    }
    path = save("optimizer-smoke" if arguments.smoke else "optimizer", record)
    for name, value in medians.items():
        print(f"{name:24} {value:8.2f} ms")
    print(f"saved {path}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--smoke", action="store_true", help="a small shape, to see that it runs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
