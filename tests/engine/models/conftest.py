"""Tiny random checkpoints, saved by transformers itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from multiflora.engine.config import BaseConfig
from multiflora.engine.models.load import load_base
from multiflora.engine.models.registry import load_model_config
from multiflora.engine.models.weights import BaseWeights
from multiflora.kernels import torch_ops

TINY: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
CONFIGS: dict[str, Any] = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
}

SaveModel = Callable[..., Path]


def load(
    folder: Path, cache: Path | None = None, *, dtype: torch.dtype = torch.float32, **settings: Any
) -> BaseWeights:
    """The base in ``folder`` as the plain backend holds it, kept under ``cache``."""
    return load_base(
        folder,
        load_model_config(folder),
        BaseConfig(model=str(folder), **settings),
        ops=torch_ops,
        dtype=dtype,
        device=torch.device("cpu"),
        cache_dir=cache,
        progress=lambda *_: None,
    )


@pytest.fixture
def save_model(tmp_path: Path) -> SaveModel:
    """Save a random model of a family and return its folder; keywords go to its config."""

    def save(
        family: str = "llama",
        *,
        dtype: torch.dtype = torch.float32,
        max_shard_size: str = "50GB",
        **settings: Any,
    ) -> Path:
        torch.manual_seed(0)
        config = CONFIGS[family](**{**TINY, **settings})
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        for name, parameter in model.named_parameters():
            # Biases and norms are constant after initialization: a mix-up would go unseen.
            if parameter.dim() == 1:
                with torch.no_grad():
                    parameter.add_(torch.randn_like(parameter) * 0.1)
            assert parameter.isfinite().all(), name
        folder = tmp_path / f"model-{len(list(tmp_path.iterdir()))}"
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        return folder

    return save
