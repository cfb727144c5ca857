"""Random deltas and adapters, and how far two matrices are apart."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from multiflora.adapters.merging.delta import Delta
from multiflora.adapters.peft_format import PREFIX

# Shapes [N, K] of two layers of a tiny base.
SHAPES = {
    f"model.layers.{layer}.{name}": shape
    for layer in range(2)
    for name, shape in {
        "self_attn.q_proj": (24, 20),
        "self_attn.v_proj": (12, 20),
        "mlp.down_proj": (20, 32),
    }.items()
}


@pytest.fixture(scope="session")
def random_delta() -> Callable[..., Delta]:
    """``random_delta(n, k, rank, seed=0)``: Gaussian factors, b [n, rank] and a [rank, k]."""

    def make(n: int, k: int, rank: int, seed: int = 0) -> Delta:
        generator = torch.Generator().manual_seed(seed)
        return Delta(
            torch.randn(n, rank, generator=generator), torch.randn(rank, k, generator=generator)
        )

    return make


@pytest.fixture(scope="session")
def error() -> Callable[[torch.Tensor, torch.Tensor], float]:
    """``error(actual, expected)``: the difference in the Frobenius norm, relative unless to 0."""

    def measure(actual: torch.Tensor, expected: torch.Tensor) -> float:
        scale = float(expected.double().norm()) or 1.0
        return float((actual.double() - expected.double()).norm()) / scale

    return measure


@pytest.fixture
def make_parent(tmp_path: Path) -> Callable[..., Path]:
    """``make_parent(name, seed, rank=, targets=, dtype=, edit=, **config)`` -> a PEFT folder.

    ``edit(path, b, a)`` may give other factors for a module.
    """

    def make(
        name: str,
        seed: int = 0,
        *,
        rank: int = 4,
        targets: tuple[str, ...] = ("q_proj", "v_proj", "down_proj"),
        dtype: torch.dtype = torch.float32,
        edit: Callable[[str, torch.Tensor, torch.Tensor], Any] | None = None,
        **config: Any,
    ) -> Path:
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for path, (n, k) in SHAPES.items():
            if path.endswith(targets):
                own = _rank_of(path, rank, config.get("rank_pattern", {}))
                b = torch.randn(n, own, generator=generator)
                a = torch.randn(own, k, generator=generator)
                b, a = edit(path, b, a) if edit else (b, a)
                tensors[f"{PREFIX}{path}.lora_B.weight"] = b.to(dtype).contiguous()
                tensors[f"{PREFIX}{path}.lora_A.weight"] = a.to(dtype).contiguous()
        folder = tmp_path / name
        folder.mkdir()
        settings = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": "some/base",
            "r": rank,
            "lora_alpha": 8,
            "target_modules": list(targets),
        }
        (folder / "adapter_config.json").write_text(json.dumps({**settings, **config}))
        save_file(tensors, folder / "adapter_model.safetensors")
        return folder

    return make


def _rank_of(path: str, rank: int, pattern: Mapping[str, int]) -> int:
    return next((value for name, value in pattern.items() if path.endswith(name)), rank)
