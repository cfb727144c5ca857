import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from multiflora.engine.errors import InvalidCheckpoint
from multiflora.engine.models.shard import INDEX_NAME, find_shards, read_shard


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3, 4), "b": torch.ones(5).bfloat16()}, file, {"format": "pt"})
    return file


def write_header(path: Path, header: object, data: bytes = b"") -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_header_lists_what_was_saved(path: Path) -> None:
    shard = read_shard(path)
    assert shard.entries["a"].shape == (3, 4)
    assert shard.entries["b"].dtype == "BF16"
    assert shard.metadata == {"format": "pt"}


def test_truncated_data_names_file_and_tensor(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InvalidCheckpoint, match=r"model\.safetensors is truncated: tensor b"):
        read_shard(path)


@pytest.mark.parametrize("size", [0, 5, 8, 40])
def test_truncated_header_names_the_file(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InvalidCheckpoint, match=r"model\.safetensors"):
        read_shard(path)


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}},
        {"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1]}},
        {"a": 3},
    ],
    ids=["list", "size", "negative", "before", "dtype", "no-offsets", "number"],
)
def test_contradictory_headers_are_refused(path: Path, header: object) -> None:
    write_header(path, header, b"0000")
    with pytest.raises(InvalidCheckpoint, match="damaged"):
        read_shard(path)


def test_header_that_is_not_json_is_refused(path: Path) -> None:
    path.write_bytes((4).to_bytes(8, "little") + b"{{{{")
    with pytest.raises(InvalidCheckpoint, match="damaged"):
        read_shard(path)


def test_the_index_decides_which_files_count(tmp_path: Path) -> None:
    for name in ("model-1.safetensors", "model-2.safetensors", "other.safetensors"):
        (tmp_path / name).touch()
    weight_map = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    assert [p.name for p in find_shards(tmp_path)] == ["model-1.safetensors", "model-2.safetensors"]


def test_missing_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / INDEX_NAME).write_text('{"weight_map": {"a": "gone.safetensors"}}')
    with pytest.raises(InvalidCheckpoint, match=r"gone\.safetensors"):
        find_shards(tmp_path)


def test_index_cannot_leave_the_folder(tmp_path: Path) -> None:
    (tmp_path.parent / "secret.safetensors").touch()
    (tmp_path / INDEX_NAME).write_text('{"weight_map": {"a": "../secret.safetensors"}}')
    with pytest.raises(InvalidCheckpoint, match="secret"):
        find_shards(tmp_path)


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": 3}'])
def test_damaged_index_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX_NAME).write_text(text)
    with pytest.raises(InvalidCheckpoint, match=INDEX_NAME):
        find_shards(tmp_path)


def test_numbered_files_need_no_index_and_second_copies_are_left_out(tmp_path: Path) -> None:
    for name in ("b.safetensors", "a.safetensors", "consolidated.safetensors"):
        (tmp_path / name).touch()
    assert [p.name for p in find_shards(tmp_path)] == ["a.safetensors", "b.safetensors"]
