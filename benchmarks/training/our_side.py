"""Our side of the comparison with TRL, in a process of its own as theirs is.

It is asked once, with the work; the factors it starts with are written for the others.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from multiflora.engine.config import BaseConfig
from multiflora.engine.models.load import load_base
from multiflora.engine.models.registry import load_model_config
from multiflora.engine.models.rope import rope_tables
from multiflora.engine.training.config import (
    BatchSettings,
    LoraSettings,
    OptimizerSettings,
    ScheduleSettings,
    TrainingSettings,
)
from multiflora.engine.training.example import Example
from multiflora.engine.training.heap import keep_freed_memory
from multiflora.engine.training.network import TrainingNetwork
from multiflora.engine.training.quantum import StepTaken
from multiflora.engine.training.run import TrainingRun
from multiflora.engine.training.task_kind import make_task
from multiflora.kernels.choose import choose_ops
from multiflora.kernels.ops import RopeTable

from ..peer_process import answer_questions
from .ragged_rows import LONGEST, RATE, Work
from .step_meter import StepMeter


def train(work_fields: Mapping[str, Any]) -> dict[str, Any]:
    work = Work.of(work_fields)
    # As an engine does before its first job.
    keep_freed_memory()
    network = _network(work.base)
    settings = _settings(work)
    rows = [Example(row.ids, row.weights, line) for line, row in enumerate(work.rows(), start=1)]
    with tempfile.TemporaryDirectory() as folder:
        task = make_task(rows, settings.method)
        run = TrainingRun(network, task, settings, folder=Path(folder))
        save_file(run.factors.tensors(), str(work.start))
        meter = StepMeter()
        while not run.has_ended:
            event = run.run_quantum().event
            if isinstance(event, StepTaken):
                meter.step(event.metrics["loss"])
    return meter.figures(work)


def _network(base: Path) -> TrainingNetwork:
    device, dtype = torch.device("cpu"), torch.float32
    config = load_model_config(base)
    ops = choose_ops("cpu", device, dtype)
    weights = load_base(
        base,
        config,
        BaseConfig(model=str(base)),
        ops=ops,
        dtype=dtype,
        device=device,
        cache_dir=None,
        progress=lambda stage, fraction: None,
    )
    rope = rope_tables(
        config.rope, head_dim=config.head_dim, max_len=LONGEST, max_position=config.max_position
    )
    return TrainingNetwork(config, weights, ops, RopeTable(*rope))


def _settings(work: Work) -> TrainingSettings:
    return TrainingSettings(
        lora=LoraSettings(rank=work.lora["r"], alpha=work.lora["lora_alpha"]),
        optimizer=OptimizerSettings(learning_rate=RATE),
        schedule=ScheduleSettings(kind="constant", warmup_steps=0),
        batch=BatchSettings(batch_size=work.rows_per_step, num_epochs=1, shuffle=False),
    )


if __name__ == "__main__":
    answer_questions(train)
