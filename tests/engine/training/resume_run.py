"""Trains in a process of its own, printing each step's loss, so that a test can kill it."""

import json
import sys
from pathlib import Path

import torch

from multiflora.engine.config import BaseConfig
from multiflora.engine.models.load import load_base
from multiflora.engine.models.registry import load_model_config
from multiflora.engine.models.rope import rope_tables
from multiflora.engine.training.config import (
    BatchSettings,
    CheckpointSettings,
    LoraSettings,
    TrainingSettings,
)
from multiflora.engine.training.example import Example
from multiflora.engine.training.network import TrainingNetwork
from multiflora.engine.training.quantum import StepTaken
from multiflora.engine.training.run import TrainingRun
from multiflora.engine.training.task import SupervisedTask
from multiflora.kernels.choose import choose_ops
from multiflora.kernels.ops import RopeTable


def main(base: Path, rows: Path, *folders: Path) -> None:
    torch.set_num_threads(1)
    cpu, config = torch.device("cpu"), load_model_config(base)
    ops = choose_ops("cpu", cpu, torch.float32)
    weights = load_base(
        base,
        config,
        BaseConfig(model=str(base), quantization="none"),
        ops=ops,
        dtype=torch.float32,
        device=cpu,
        cache_dir=None,
        progress=lambda stage, fraction: None,
    )
    rope = rope_tables(config.rope, head_dim=config.head_dim, max_len=512, max_position=512)
    settings = TrainingSettings(
        lora=LoraSettings(rank=4, alpha=8, dropout=0.1),
        batch=BatchSettings(batch_size=2, num_epochs=4),
        checkpoint=CheckpointSettings(every_steps=2),
    )
    examples = [
        Example(tuple(ids), (0.0, *(1.0,) * (len(ids) - 1)), line)
        for line, ids in enumerate(json.loads(rows.read_text()), start=1)
    ]
    network = TrainingNetwork(config, weights, ops, RopeTable(*rope))
    for folder in folders:
        run = TrainingRun(network, SupervisedTask(examples), settings, folder=folder)
        while not run.has_ended:
            event = run.run_quantum().event
            if isinstance(event, StepTaken):
                print(json.dumps([event.step, event.metrics["loss"]]), flush=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
