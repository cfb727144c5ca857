"""Small adapter folders written by hand, without PEFT, so that each can be wrong in its own way."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import save_file

from multiflora.adapters.archive import ArchiveLimits
from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.folder import AdapterFolder
from multiflora.adapters.gate import check_adapter
from multiflora.adapters.inspection import GateLimits
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
def limits() -> GateLimits:
    """Small enough to be reached by files that are made in no time."""
    return GateLimits(
        max_rank=16,
        max_bytes=1 << 20,
        max_tensors=64,
        cpu_seconds=10,
        wall_seconds=20,
        archive=ArchiveLimits(
            max_packed_bytes=2 << 20,
            max_unpacked_bytes=4 << 20,
            max_members=16,
            max_path_chars=100,
        ),
    )


@pytest.fixture
def no_child_left() -> Iterator[None]:
    """Children that the test made have ended with it; those of other tests may be alive."""
    others = set(psutil.Process().children())
    yield
    assert set(psutil.Process().children()) <= others


@pytest.fixture
def gate_refuses_all(
    projections: tuple[Projection, ...],
    limits: GateLimits,
    tmp_path: Path,
    no_child_left: None,
) -> Callable[[Mapping[Path, str]], None]:
    """``gate_refuses_all({source: code})``: every one with its code, and at no lasting cost."""

    def refuse(source: Path, code: str) -> None:
        with tempfile.TemporaryDirectory(dir=tmp_path) as staged:
            with pytest.raises(AdapterRejected) as caught:
                check_adapter(source, Path(staged), projections=projections, limits=limits)
            assert caught.value.code == code, source

    def refuse_all(codes: Mapping[Path, str]) -> None:
        this_process = psutil.Process()
        refuse(*next(iter(codes.items())))
        descriptors, memory = this_process.num_fds(), this_process.memory_info().rss
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(refuse, codes.keys(), codes.values()))
        assert this_process.num_fds() == descriptors
        assert this_process.memory_info().rss - memory < 8 << 20

    return refuse_all


@pytest.fixture
def tiny_folder(tmp_path: Path) -> AdapterFolder:
    """A well-formed folder of one value, for tests that care about bytes and not about adapters."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    save_file({"x": torch.ones(1)}, folder / "adapter_model.safetensors")
    return AdapterFolder(folder)
