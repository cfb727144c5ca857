"""A version's bytes are whole or absent, and stay while somebody counts on them."""

import os
import shutil
from pathlib import Path

import pytest

from multiflora.adapters import durable
from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.folder import AdapterFolder
from multiflora.adapters.store import AdapterStore

DIGEST, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "data")


def test_what_was_put_is_there(store: AdapterStore, tiny_folder: AdapterFolder) -> None:
    assert store.digests() == ()
    store.put_copy(OTHER, tiny_folder)
    store.put_copy(DIGEST, tiny_folder)
    store.put_copy(DIGEST, tiny_folder)
    assert store.digests() == (DIGEST, OTHER)
    assert DIGEST in store
    assert store.open(DIGEST).digest("") == tiny_folder.digest("")


@pytest.mark.parametrize("digest", ["", "../../etc", "A" * 64, "c" * 64])
def test_what_was_not_put_is_not(store: AdapterStore, digest: str) -> None:
    assert digest not in store
    with pytest.raises(AdapterRejected):
        store.open(digest)


def test_bytes_are_on_the_disk_before_they_have_their_name(
    store: AdapterStore,
    tiny_folder: AdapterFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    sync, rename = durable.sync, os.rename

    def record_sync(path: Path) -> None:
        done.append(f"sync {'staging' if path.name.startswith('.incoming') else path.name}")
        sync(path)

    def record_rename(source: Path, target: Path) -> None:
        done.append("rename")
        rename(source, target)

    monkeypatch.setattr(durable, "sync", record_sync)
    monkeypatch.setattr(os, "rename", record_rename)
    store.put_copy(DIGEST, tiny_folder)
    files = ["sync adapter_config.json", "sync adapter_model.safetensors", "sync staging"]
    new_folders = [f"sync {tmp_path.name}", "sync data", "sync adapters"]
    assert done == [*new_folders, *files, "rename", "sync aa", "sync adapters"]
    done.clear()
    store.put_copy(DIGEST, tiny_folder)
    assert done == ["sync aa", "sync adapters"], "the first writer may have died before these"


def test_a_failing_disk_leaves_nothing(
    store: AdapterStore,
    tiny_folder: AdapterFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", fail)
        with pytest.raises(OSError, match="No space"):
            store.put_copy(DIGEST, tiny_folder)
    assert DIGEST not in store
    assert not list((tmp_path / "data" / "adapters").glob(".*"))
    store.put_copy(DIGEST, tiny_folder)
    assert DIGEST in store


def test_held_bytes_are_not_removed(store: AdapterStore, tiny_folder: AdapterFolder) -> None:
    for _ in range(2):
        store.put_copy(DIGEST, tiny_folder)
    for _ in range(2):
        assert not store.remove(DIGEST)
        assert DIGEST in store
        store.release(DIGEST)
    assert store.remove(DIGEST)
    assert DIGEST not in store
    assert not store.remove(DIGEST)


def test_sweeping_spares_what_is_on_its_way_in(
    store: AdapterStore,
    tiny_folder: AdapterFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = shutil.copyfile

    def sweep_then_copy(source: Path, target: Path) -> None:
        store.sweep()
        copy(source, target)

    (tmp_path / "data" / "adapters" / ".incoming-dead").mkdir(parents=True)
    monkeypatch.setattr(shutil, "copyfile", sweep_then_copy)
    store.put_copy(DIGEST, tiny_folder)
    assert [path.name for path in (tmp_path / "data" / "adapters").iterdir()] == ["aa"]
    assert store.open(DIGEST).digest("") == tiny_folder.digest("")
