"""Small adapter folders written by hand, without PEFT, so that each can be wrong in its own way."""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from multiflora.adapters.folder import AdapterFolder
from multiflora.adapters.peft_format import PREFIX
from multiflora.adapters.target import Projection, TargetModule

HIDDEN, INNER, KV = 64, 96, 32


@pytest.fixture
def projections() -> tuple[Projection, ...]:
    """Two decoder layers of a tiny base."""

    def module(layer: int, path: str, n: int, k: int) -> TargetModule:
        return TargetModule(f"model.layers.{layer}.{path}", n, k)

    return tuple(
        Projection(layer, kind, tuple(module(layer, *part) for part in parts))
        for layer in range(2)
        for kind, parts in {
            "qkv": (
                ("self_attn.q_proj", HIDDEN, HIDDEN),
                ("self_attn.k_proj", KV, HIDDEN),
                ("self_attn.v_proj", KV, HIDDEN),
            ),
            "o": (("self_attn.o_proj", HIDDEN, HIDDEN),),
            "gate_up": (("mlp.gate_proj", INNER, HIDDEN), ("mlp.up_proj", INNER, HIDDEN)),
            "down": (("mlp.down_proj", HIDDEN, INNER),),
        }.items()
    )


@pytest.fixture
def write_adapter(tmp_path: Path, projections: tuple[Projection, ...]) -> Callable[..., Path]:
    """``write_adapter(name, config changes, modules=..., edit=...)`` -> a folder.

    ``edit`` may change the tensors before they are saved.
    """

    def write(
        name: str = "adapter",
        *,
        modules: tuple[str, ...] = ("q_proj", "down_proj"),
        rank: int = 4,
        edit: Callable[[dict[str, torch.Tensor]], None] | None = None,
        **changes: Any,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        config = {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": 8,
            "target_modules": list(modules),
            **changes,
        }
        (folder / "adapter_config.json").write_text(json.dumps(config))
        generator = torch.Generator().manual_seed(7)
        tensors = {}
        for projection in projections:
            for part in projection.slices:
                if part.path.endswith(modules):
                    key = f"{PREFIX}{part.path}"
                    tensors[f"{key}.lora_A.weight"] = torch.randn(
                        rank, part.in_features, generator=generator
                    )
                    tensors[f"{key}.lora_B.weight"] = torch.randn(
                        part.out_features, rank, generator=generator
                    )
        if edit:
            edit(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")
        return folder

    return write


@pytest.fixture
def memory_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one.

    For thousands of syncs whose time is the disk's and whose effect a living kernel hides.
    """
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture
def tiny_folder(tmp_path: Path) -> AdapterFolder:
    """A well-formed folder of one value, for tests that care about bytes and not about adapters."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    save_file({"x": torch.ones(1)}, folder / "adapter_model.safetensors")
    return AdapterFolder(folder)
