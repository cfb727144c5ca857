"""An engine that trains while it serves, turned until something has happened."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from multiflora.adapters.folder import WEIGHTS_NAME
from multiflora.engine.config import TrainingConfig
from multiflora.engine.messages import (
    StartTraining,
)
from multiflora.engine.training.config import (
    BatchSettings,
    CheckpointSettings,
    LoraSettings,
    OptimizerSettings,
    TrainingSettings,
)
from multiflora.engine.training.data.dataset import PreparedDataset
from multiflora.engine.training.job import (
    JobEnded,
    JobEvent,
    JobFailed,
    JobStarted,
    TrainingJob,
)
from multiflora.engine.training.run import TrainingRun
from multiflora.engine.training.task_kind import make_task

PROMPT = list(range(10, 40))
NAMES = (None, "rank-3", "rank-16-patterns")
# No quantum of the tiny models is long enough to cut micro-batches.
PATIENT = TrainingConfig(quantum_seconds=60.0, memory_bytes=256 << 20)
SETTINGS = TrainingSettings(
    lora=LoraSettings(rank=4, alpha=8, dropout=0.1),
    batch=BatchSettings(batch_size=2, num_epochs=2, micro_batch_tokens=48),
    optimizer=OptimizerSettings(learning_rate=1e-2),
    checkpoint=CheckpointSettings(every_steps=2),
)


def turn_until(bench: Any, condition: Callable[[], bool], max_turns: int = 20_000) -> None:
    for _ in range(max_turns):
        if condition():
            return
        bench.turn()
    raise AssertionError(f"nothing came of it: {bench.training}")


def is_over(bench: Any, id: str = "job") -> bool:
    return isinstance(last(bench, id), JobEnded | JobFailed)


def last(bench: Any, id: str = "job") -> JobEvent | None:
    return bench.training.get(id, [None])[-1]


def found(bench: Any, kind: type, id: str = "job") -> list[Any]:
    return [event for event in bench.training.get(id, []) if isinstance(event, kind)]


def finish(bench: Any, job: TrainingJob) -> list[JobEvent]:
    bench.send(StartTraining(job.document()))
    turn_until(bench, lambda: is_over(bench, job.id))
    return bench.training[job.id]


def tensors(folder: str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / WEIGHTS_NAME)


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def stand_alone(bench: Any, job: TrainingJob, folder: Path) -> dict[str, torch.Tensor]:
    """The factors of an undisturbed run with the job's micro-batches."""
    tokens = found(bench, JobStarted, job.id)[-1].micro_batch_tokens
    batch = dataclasses.replace(job.settings.batch, micro_batch_tokens=tokens)
    settings = dataclasses.replace(job.settings, batch=batch)
    with PreparedDataset.open(Path(job.data)) as dataset:
        rows: Any = list(dataset)
    network = bench.loop._background._place.network
    run = TrainingRun(network, make_task(rows, settings.method), settings, folder=folder)
    while not run.has_ended:
        run.run_quantum()
    return run.factors.tensors()
