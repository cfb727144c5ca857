"""Training an 8B shape on a GPU: speed, memory above the base, and what serving feels of it.

Alone: supervised steps of rank 16 over micro-batches of 4,096 packed tokens, on random NF4 weights
in the shape of Llama-3.1-8B; the first step is not counted. Memory is the peak that torch allocated
above the loaded base. Beside serving: the same base in an engine, as in ``bench_coserving``.

    python -m benchmarks.training.bench_gpu_training [--device cuda] [--shape llama-3.1-8b]

``--device cpu --shape tiny`` shows that the script works and measures nothing.
"""

import argparse
import asyncio
import gc
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.harness import save
from benchmarks.shape import LLAMA_8B, build_nf4_base
from multiflora.engine.config import BaseConfig, EngineConfig, SchedulerConfig, TrainingConfig
from multiflora.engine.training.config import BatchSettings, LoraSettings, TrainingSettings
from multiflora.engine.training.example import Example
from multiflora.engine.training.job import TrainingJob
from multiflora.engine.training.quantum import StepTaken
from multiflora.engine.training.run import TrainingRun
from multiflora.engine.training.task_kind import make_task

from .base_network import open_network
from .bench_coserving import ROW_TOKENS, measure, write_rows

RANK: Final = 16
MICRO_BATCHES_PER_STEP: Final = 2
AIMS: Final = {"tokens_per_second": 8_000, "extra_gib": 3.5}


@dataclass(frozen=True, slots=True)
class Scale:
    """A shape and how much of it is trained."""

    shape: dict[str, Any]
    micro_batch_tokens: int
    longest_row: int
    steps: int
    max_requests: int


SCALES: Final = {
    "llama-3.1-8b": Scale(LLAMA_8B, 4_096, 1_024, steps=12, max_requests=32),
    "tiny": Scale(
        {
            **LLAMA_8B,
            "vocab_size": 2_048,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
        },
        128,
        64,
        steps=2,
        max_requests=2,
    ),
}


def train_alone(base: Path, scale: Scale, device: torch.device, kernels: Any) -> dict[str, Any]:
    """Tokens a second over whole steps, the longest quanta, and memory above the base."""
    network = open_network(
        base,
        base=BaseConfig(model=str(base)),
        kernels=kernels,
        device=device,
        dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
    )
    rows = list(_rows(scale))
    settings = TrainingSettings(
        lora=LoraSettings(rank=RANK, alpha=2 * RANK),
        batch=BatchSettings(
            batch_size=len(rows) // scale.steps,
            max_steps=scale.steps,
            micro_batch_tokens=scale.micro_batch_tokens,
            shuffle=False,
        ),
    )
    base_bytes = _allocated(device)
    with tempfile.TemporaryDirectory() as folder:
        run = TrainingRun(network, make_task(rows, settings.method), settings, folder=Path(folder))
        steps, quanta = _time_steps(run, device)
    tokens = run.state.num_tokens - steps[0][1]
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {
        "tokens_per_second": round(tokens / (steps[-1][0] - steps[0][0]), 1),
        "tokens_per_step": round(run.state.num_tokens / len(steps)),
        "quantum_ms": {
            kind: {"p50": round(1e3 * statistics.median(v), 2), "max": round(1e3 * max(v), 2)}
            for kind, v in quanta.items()
        },
        "base_gib": None if peak is None else round(base_bytes / 2**30, 2),
        "extra_gib": None if peak is None else round((peak - base_bytes) / 2**30, 2),
    }


def _time_steps(
    run: TrainingRun, device: torch.device
) -> tuple[list[tuple[float, int]], dict[str, list[float]]]:
    """When each step ended and after how many tokens; seconds of quanta after the first step."""
    steps: list[tuple[float, int]] = []
    quanta: dict[str, list[float]] = {}
    while not run.has_ended:
        started = time.perf_counter()
        report = run.run_quantum()
        _synchronize(device)
        now = time.perf_counter()
        if steps:
            quanta.setdefault(report.kind, []).append(now - started)
        if isinstance(report.event, StepTaken):
            steps.append((now, run.state.num_tokens))
    return steps, quanta


def _rows(scale: Scale) -> Iterator[Example]:
    """Random rows in the order of their micro-batches, which they fill to the token; the first half
    of each is its prompt."""
    numbers = random.Random(1)
    lengths = _lengths(scale, numbers)
    for line in range(scale.steps * MICRO_BATCHES_PER_STEP):
        for length in numbers.sample(lengths, len(lengths)):
            ids = tuple(numbers.randrange(3, scale.shape["vocab_size"]) for _ in range(length))
            half = length // 2
            yield Example(ids, (0.0,) * half + (1.0,) * (length - half), line + 1)


def _lengths(scale: Scale, numbers: random.Random) -> list[int]:
    """Ragged lengths that fill one micro-batch."""
    shortest, lengths = scale.longest_row // 8, []
    while left := scale.micro_batch_tokens - sum(lengths):
        drawn = numbers.randint(shortest, scale.longest_row)
        lengths.append(left if left <= drawn + shortest else drawn)
    return lengths


def _allocated(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    _synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def serve_beside(base: Path, scale: Scale, folder: Path, arguments: Any) -> dict[str, Any]:
    """Inter-token gaps with and without a job, and what the job keeps of its speed."""
    config = EngineConfig(
        base=BaseConfig(model=str(base)),
        device=arguments.device,
        data_dir=str(folder),
        max_model_len=1_024,
        scheduler=SchedulerConfig(max_num_requests=scale.max_requests),
        training=TrainingConfig(pace="balanced"),
    )
    batch = BatchSettings(
        batch_size=max(1, scale.micro_batch_tokens // ROW_TOKENS),
        num_epochs=1_000_000,
        micro_batch_tokens=scale.micro_batch_tokens,
    )
    job = TrainingJob(
        id="job",
        data=str(write_rows(folder / "rows", scale.shape["vocab_size"])),
        folder=str(folder / "job"),
        settings=TrainingSettings(lora=LoraSettings(rank=RANK, alpha=2 * RANK), batch=batch),
        base_name="random",
    )
    return asyncio.run(measure(config, job, arguments))


def main() -> int:
    arguments = _arguments()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("bench_gpu_training needs a CUDA device; see --device cpu", file=sys.stderr)
        return 2
    scale = SCALES[arguments.shape]
    record: dict[str, Any] = {"shape": arguments.shape, "rank": RANK, "aims": AIMS}
    record["micro_batch_tokens"] = scale.micro_batch_tokens
    path: Path | None = None
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        folder = Path(name)
        base = build_nf4_base(folder / "base", scale.shape)
        for section in ("alone", "beside"):
            if section == "alone":
                record[section] = train_alone(base, scale, device, "auto")
                _release(device)
            else:
                record[section] = serve_beside(base, scale, folder, arguments)
            print(section, json.dumps(record[section], indent=2), flush=True)
            if device.type == "cuda":
                # After every section: a machine that goes away takes no number with it.
                path = save("gpu-training", record, path=path)
    print(f"saved {path}" if path else "no GPU: nothing measured, nothing saved")
    return 0


def _release(device: torch.device) -> None:
    """Give the memory back before an engine plans with what is free."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", choices=tuple(SCALES), default="llama-3.1-8b")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each phase")
    parser.add_argument("--tokens", type=int, default=64, help="tokens per answer")
    parser.add_argument("--load", type=float, default=0.5, help="share of the saturated rate")
    parser.add_argument("--scratch", help="where the random base is written, 6 GB")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
