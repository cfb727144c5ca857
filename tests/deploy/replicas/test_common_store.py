"""What replicas share survives everything but being changed."""

from pathlib import Path

import pytest

from multiflora.adapters.error import InvalidName

pytest.importorskip("obstore", reason="obstore is not installed; pip install 'multiflora[ray]'")

from deploy.replicas.common_store import CommonStore

DIGEST, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def store(tmp_path: Path) -> CommonStore:
    return CommonStore((tmp_path / "common").as_uri())


def version(folder: Path, text: str = "weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_text(text)
    return folder


def test_a_version_comes_back_as_it_was_put(store: CommonStore, tmp_path: Path) -> None:
    store.put(DIGEST, version(tmp_path / "version"))
    store.put(DIGEST, version(tmp_path / "again", "of the same digest, so never written"))
    (tmp_path / "back").mkdir()
    store.fetch(DIGEST, tmp_path / "back")
    back = {path.name: path.read_text() for path in (tmp_path / "back").iterdir()}
    assert back == {"adapter_config.json": "{}", "adapter_model.safetensors": "weights"}


def test_half_a_version_is_none(store: CommonStore, tmp_path: Path) -> None:
    whole = version(tmp_path / "version")
    (whole / "adapter_config.json").unlink()
    store.put(DIGEST, whole)
    with pytest.raises(OSError, match="publish it again"):
        store.fetch(DIGEST, tmp_path)


@pytest.mark.parametrize("name", ["alpha", "a.b-c_d", "bot:v1.2"])
def test_names_point_where_they_were_told_last(store: CommonStore, name: str) -> None:
    assert store.digest_of(name) is None
    store.point(name, DIGEST)
    store.point("other", OTHER)
    store.point(name, OTHER)
    assert store.digest_of(name) == OTHER
    assert store.names() == sorted([name, "other"])
    store.forget(name)
    assert store.digest_of(name) is None
    assert store.names() == ["other"]


def test_a_name_is_no_path(store: CommonStore) -> None:
    with pytest.raises(InvalidName):
        store.point("../versions", DIGEST)
    assert store.digest_of("../versions") is None


def test_a_pointer_that_somebody_spoilt_is_an_error(store: CommonStore, tmp_path: Path) -> None:
    store.point("alpha", DIGEST)
    (tmp_path / "common" / "names" / "alpha").write_text("latest")
    with pytest.raises(OSError, match="no digest"):
        store.digest_of("alpha")


def test_a_store_needs_a_scheme() -> None:
    with pytest.raises(ValueError, match="file:///folder"):
        CommonStore("/folder")
