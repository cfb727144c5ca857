from pathlib import Path

import pytest
import safetensors.torch
import torch

from multiflora.adapters.tensor_file import write_tensors
from multiflora.engine.models.shard import read_shard
from multiflora.engine.models.tensor_file import map_tensors, read_tensor

TENSORS = {
    "odd": torch.arange(7, dtype=torch.uint8),
    "matrix": torch.randn(8, 16, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "scalar": torch.tensor(3.5),
    "empty": torch.empty(0, 4),
    "float": torch.linspace(0, 1, 33),
    "view": torch.arange(12).reshape(3, 4).T,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "x.safetensors"
    write_tensors(file, TENSORS, {"about": "this"})
    return file


@pytest.mark.parametrize("name", TENSORS)
def test_reading_and_mapping_give_the_same_tensor(path: Path, name: str) -> None:
    shard = read_shard(path)
    assert shard.metadata == {"about": "this"}
    for tensor in (read_tensor(shard, name), map_tensors(shard)[name]):
        assert tensor.dtype == TENSORS[name].dtype
        assert torch.equal(tensor, TENSORS[name])


def test_whole_lines_are_aligned(path: Path) -> None:
    assert map_tensors(read_shard(path))["matrix"].data_ptr() % 64 == 0


def test_files_of_the_safetensors_package_are_read(tmp_path: Path) -> None:
    file = tmp_path / "theirs.safetensors"
    theirs = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    safetensors.torch.save_file(theirs, file)
    shard = read_shard(file)
    for name, tensor in theirs.items():
        assert torch.equal(read_tensor(shard, name), tensor), name
        assert torch.equal(map_tensors(shard)[name], tensor), name


def test_writing_to_a_mapped_tensor_leaves_the_file_alone(path: Path) -> None:
    before = path.read_bytes()
    map_tensors(read_shard(path))["float"].zero_()
    assert path.read_bytes() == before
