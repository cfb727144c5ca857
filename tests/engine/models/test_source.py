from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from multiflora.engine.errors import BaseNotFound, InvalidCheckpoint
from multiflora.engine.models.source import resolve_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    return tmp_path


def test_local_folder_is_used_as_it_is(folder: Path) -> None:
    assert resolve_model(str(folder), None) == folder


def test_local_folder_has_no_revision(folder: Path) -> None:
    with pytest.raises(BaseNotFound, match="no revision 'main'"):
        resolve_model(str(folder), "main")


def test_folder_without_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(InvalidCheckpoint, match=r"no config\.json"):
        resolve_model(str(folder), None)


def test_folder_without_safetensors_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InvalidCheckpoint, match=r"no \*\.safetensors"):
        resolve_model(str(folder), None)


def test_adapter_folder_is_recognized(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(InvalidCheckpoint, match="is an adapter"):
        resolve_model(str(folder), None)


def test_file_is_refused(folder: Path) -> None:
    with pytest.raises(BaseNotFound, match="is a file"):
        resolve_model(str(folder / "model.safetensors"), None)


@pytest.mark.parametrize("model", ["/no/such/folder", "./missing", "name", "a/b/c", "../x", ""])
def test_what_is_neither_folder_nor_hub_id_is_refused(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises((BaseNotFound, InvalidCheckpoint), match=r"neither|has no"):
        resolve_model(model, None)


def test_hub_download_takes_no_pickles(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(model: str, **settings: Any) -> str:
        asked.update(settings, model=model)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_model("owner/name", "v1") == folder
    assert (asked["model"], asked["revision"]) == ("owner/name", "v1")
    assert not any("bin" in pattern for pattern in asked["allow_patterns"])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        pytest.param(errors.LocalEntryNotFoundError("x"), "local hub cache", id="offline"),
        pytest.param(errors.HFValidationError("x"), "not a valid hub id", id="bad-id"),
    ],
)
def test_hub_errors_say_what_to_do(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(BaseNotFound, match=message):
        resolve_model("owner/name", None)


def test_offline_hub_id_outside_the_cache_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BaseNotFound):
        resolve_model("no-such-owner/no-such-model", None)
