import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from multiflora.engine.errors import StartupError
from multiflora.engine.models import load as load_module
from multiflora.engine.models.weights import BaseWeights

from .conftest import load

SaveModel = Callable[..., Path]
SETTINGS: dict[str, dict[str, Any]] = {
    "nf4": {},
    "single": {"double_quantization": False},
    "head": {"quantize_head": True},
    "none": {"quantization": "none"},
}


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each time a base is made from its checkpoint."""
    made: list[str] = []
    assemble = load_module.assemble

    def counted(*args: Any, **settings: Any) -> BaseWeights:
        made.append("built")
        return assemble(*args, **settings)

    monkeypatch.setattr(load_module, "assemble", counted)
    return made


def prepared_file(cache: Path) -> Path:
    (path,) = cache.glob("*.safetensors")
    return path


def assert_equal_bases(ours: BaseWeights, expected: BaseWeights) -> None:
    assert ours.digest == expected.digest
    assert ours.num_bytes == expected.num_bytes
    found = dict(ours.tensors())
    assert found.keys() == dict(expected.tensors()).keys()
    for name, tensor in expected.tensors():
        assert torch.equal(found[name], tensor), name
        assert found[name].dtype == tensor.dtype


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_second_start_gives_the_same_base_without_building(
    save_model: SaveModel, tmp_path: Path, builds: list[str], settings: dict[str, Any], tied: bool
) -> None:
    folder = save_model("qwen2", tie_word_embeddings=tied)
    first = load(folder, tmp_path / "cache", **settings)
    second = load(folder, tmp_path / "cache", **settings)
    assert builds == ["built"]
    assert_equal_bases(second, first)
    assert [type(part) for _, part in second.named_parts()] == [
        type(part) for _, part in first.named_parts()
    ]


def test_second_start_reads_no_shard_again(
    save_model: SaveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model()
    load(folder, tmp_path / "cache")

    def fail(path: Path) -> str:
        raise AssertionError(f"{path} was hashed again")

    monkeypatch.setattr("multiflora.engine.models.digest._hash_file", fail)
    load(folder, tmp_path / "cache")


@pytest.mark.parametrize(
    "changed",
    [{"double_quantization": False}, {"quantize_head": True}, {"dtype": torch.bfloat16}],
    ids=["single", "head", "dtype"],
)
def test_other_forms_are_kept_apart(
    save_model: SaveModel, tmp_path: Path, builds: list[str], changed: dict[str, Any]
) -> None:
    folder = save_model()
    load(folder, tmp_path / "cache")
    assert_equal_bases(load(folder, tmp_path / "cache", **changed), load(folder, None, **changed))
    assert len(builds) == 3


def test_copy_of_a_checkpoint_shares_the_prepared_form(
    save_model: SaveModel, tmp_path: Path, builds: list[str]
) -> None:
    folder = save_model()
    load(folder, tmp_path / "cache")
    load(folder.rename(tmp_path / "elsewhere"), tmp_path / "cache")
    assert builds == ["built"]


def test_changed_weights_are_noticed(
    save_model: SaveModel, tmp_path: Path, builds: list[str]
) -> None:
    folder = save_model()
    load(folder, tmp_path / "cache")
    shard = folder / "model.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1000] ^= 1
    shard.write_bytes(content)
    load(folder, tmp_path / "cache")
    assert len(builds) == 2


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-64])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, lambda path: path.write_bytes(b"")])
def test_damaged_prepared_form_is_rebuilt_and_logged(
    save_model: SaveModel,
    tmp_path: Path,
    builds: list[str],
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], object],
) -> None:
    folder, cache = save_model(), tmp_path / "cache"
    first = load(folder, cache)
    damage(prepared_file(cache))
    with caplog.at_level(logging.WARNING):
        assert_equal_bases(load(folder, cache), first)
    assert "will be rebuilt" in caplog.text
    assert len(builds) == 2
    load(folder, cache)
    assert len(builds) == 2


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"sha256": "0"}'])
def test_damaged_voucher_is_not_believed(
    save_model: SaveModel, tmp_path: Path, builds: list[str], text: str
) -> None:
    folder, cache = save_model(), tmp_path / "cache"
    load(folder, cache)
    prepared_file(cache).with_suffix(".json").write_text(text)
    load(folder, cache)
    assert len(builds) == 2


def test_interrupted_write_counts_as_absent(
    save_model: SaveModel, tmp_path: Path, builds: list[str]
) -> None:
    folder, cache = save_model(), tmp_path / "cache"
    load(folder, cache)
    prepared_file(cache).with_suffix(".json").unlink()
    load(folder, cache)
    assert len(builds) == 2


@pytest.mark.parametrize("text", ["", "[]", '{"/x": 3}', "\x00"])
def test_damaged_file_memory_is_rebuilt(
    save_model: SaveModel, tmp_path: Path, builds: list[str], text: str
) -> None:
    folder, cache = save_model(), tmp_path / "cache"
    load(folder, cache)
    (cache / "files.json").write_text(text)
    load(folder, cache)
    assert builds == ["built"]
    assert str(folder) in (cache / "files.json").read_text()


def test_files_that_are_gone_are_forgotten(save_model: SaveModel, tmp_path: Path) -> None:
    first, second, cache = save_model(), save_model("mistral"), tmp_path / "cache"
    load(first, cache)
    first.rename(tmp_path / "elsewhere")
    load(second, cache)
    remembered = json.loads((cache / "files.json").read_text())
    assert not any(path.startswith(f"{first}{os.sep}") for path in remembered)
    assert any(path.startswith(f"{second}{os.sep}") for path in remembered)


def test_full_disk_costs_only_the_prepared_form(
    save_model: SaveModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(path: Path, *_: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("multiflora.engine.models.prepared.write_tensors", fail)
    folder, cache = save_model(), tmp_path / "cache"
    with caplog.at_level(logging.WARNING):
        load(folder, cache)
    assert "No space left" in caplog.text
    assert not any("safetensors" in path.name for path in cache.iterdir())


def test_cache_folder_that_cannot_be_made_is_a_clear_error(
    save_model: SaveModel, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="choose --data-dir"):
        load(save_model(), tmp_path / "file" / "cache")


def test_file_memory_that_cannot_be_written_stops_nothing(
    save_model: SaveModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache" / "files.json").mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        load(save_model(), tmp_path / "cache")
    assert "could not be written" in caplog.text
