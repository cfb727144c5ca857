from pathlib import Path

import pytest
import safetensors.torch
import torch

from multiflora.adapters.tensor_file import TensorSpec, stream_tensors, write_tensors

TENSORS = {
    "odd": torch.arange(7, dtype=torch.uint8),
    "matrix": torch.randn(8, 16, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "scalar": torch.tensor(3.5),
    "empty": torch.empty(0, 4),
    "float": torch.linspace(0, 1, 33),
    "view": torch.arange(12).reshape(3, 4).T,
}


def test_safetensors_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS, {"about": "this"})
    loaded = safetensors.torch.load_file(path)
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(loaded[name], tensor), name


def test_one_tensor_is_asked_for_at_a_time(tmp_path: Path) -> None:
    specs = {name: TensorSpec(t.dtype, tuple(t.shape)) for name, t in TENSORS.items()}
    asked: list[str] = []

    def read(name: str) -> torch.Tensor:
        asked.append(name)
        return TENSORS[name]

    stream_tensors(tmp_path / "x.safetensors", specs, read, {})
    assert sorted(asked) == sorted(TENSORS)
    assert (
        sum(spec.num_bytes for spec in specs.values()) < (tmp_path / "x.safetensors").stat().st_size
    )


def test_a_tensor_other_than_announced_is_a_bug(tmp_path: Path) -> None:
    specs = {"odd": TensorSpec(torch.uint8, (8,))}
    with pytest.raises(AssertionError, match="odd"):
        stream_tensors(tmp_path / "x.safetensors", specs, TENSORS.__getitem__, {})
