"""The trained factors as an ordinary PEFT folder."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from multiflora.adapters import durable
from multiflora.adapters.folder import CONFIG_NAME, WEIGHTS_NAME
from multiflora.adapters.tensor_file import write_tensors

from .config import LoraSettings
from .factors import TrainedFactors


def export_adapter(
    factors: TrainedFactors,
    settings: LoraSettings,
    folder: Path,
    *,
    base_name: str,
    dtype: torch.dtype = torch.float32,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write ``adapter_config.json`` and the weights in ``dtype`` as the new folder ``folder``.

    ``base_name`` is what PEFT loads the base by; ``metadata`` goes into the weights' header. The
    folder is on the disk when this returns, and never half there. Raises ``FileExistsError`` and
    ``OSError``.
    """
    config = json.dumps(settings.adapter_config(base_name), indent=1, sort_keys=True)
    tensors = {name: tensor.to(dtype) for name, tensor in factors.tensors().items()}
    with durable.new_folder(folder) as staged:
        durable.write(staged / CONFIG_NAME, config.encode() + b"\n")
        write_tensors(staged / WEIGHTS_NAME, tensors, {"format": "pt", **(metadata or {})})
