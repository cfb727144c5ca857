"""The base as a trainer sees it, without an engine around it."""

from pathlib import Path

import torch

from multiflora.engine.config import BaseConfig
from multiflora.engine.models.load import load_base
from multiflora.engine.models.registry import load_model_config
from multiflora.engine.models.rope import rope_tables
from multiflora.engine.training.network import TrainingNetwork
from multiflora.kernels.choose import choose_ops
from multiflora.kernels.ops import RopeTable


def open_network(
    folder: Path,
    *,
    base: BaseConfig,
    kernels: str,
    device: torch.device,
    dtype: torch.dtype,
) -> TrainingNetwork:
    """The checkpoint in ``folder``, its weights as serving holds them."""
    config = load_model_config(folder)
    ops = choose_ops(kernels, device, dtype)
    weights = load_base(
        folder,
        config,
        base,
        ops=ops,
        dtype=dtype,
        device=device,
        cache_dir=None,
        progress=lambda stage, fraction: None,
    )
    cos, sin = rope_tables(
        config.rope,
        head_dim=config.head_dim,
        max_len=config.max_position,
        max_position=config.max_position,
    )
    return TrainingNetwork(config, weights, ops, RopeTable(cos.to(device), sin.to(device)))
