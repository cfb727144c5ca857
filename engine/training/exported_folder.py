"""What a job exports: a PEFT folder per checkpoint and one of the result, whole or absent.

<job>/exports/step-00000012/    adapter_config.json, adapter_model.safetensors; float32
      adapter/                  the result
"""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from multiflora.adapters import durable

from ..models.config import ModelConfig
from .checkpoint import TENSORS_NAME, VALUES
from .config import LoraSettings
from .export import export_adapter
from .factors import TrainedFactors

_CPU = torch.device("cpu")


def exported_folder(job_folder: Path, step: int) -> Path:
    """Where the export of the checkpoint after ``step`` is."""
    return job_folder / "exports" / f"step-{step:08d}"


def export_checkpoint(
    checkpoint: Path,
    settings: LoraSettings,
    model: ModelConfig,
    target: Path,
    *,
    base_name: str,
) -> Path:
    """The factors of a checkpoint's folder as the PEFT folder ``target``. Raises ``OSError``.

    Exports beside it whose checkpoints are gone are removed: a reader that is so far behind would
    take them out of service at once.
    """
    if not target.is_dir():
        factors = TrainedFactors(
            model.projections(),
            settings.modules(model),
            device=_CPU,
            trainable=False,
        )
        factors.values.copy_(load_file(checkpoint / TENSORS_NAME)[VALUES])
        export_adapter(factors, settings, target, base_name=base_name)
    for export in target.parent.glob("step-*"):
        if export != target and not (checkpoint.parent / export.name).is_dir():
            durable.remove_folder(export)
    return target


def sweep_exports(job_folder: Path) -> None:
    """Delete what a crash left half written or half removed. Raises ``OSError``."""
    for leftover in (*job_folder.glob("exports/.*"), *job_folder.glob(".adapter-*")):
        shutil.rmtree(leftover)


def export_result(
    factors: TrainedFactors, settings: LoraSettings, job_folder: Path, *, base_name: str
) -> Path:
    """The result's folder; one that is there is that of the same run. Raises ``OSError``."""
    target = job_folder / "adapter"
    if not target.is_dir():
        export_adapter(factors, settings, target, base_name=base_name)
    return target
