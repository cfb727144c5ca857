"""A new folder is whole or absent."""

import os
from pathlib import Path

import pytest

from multiflora.adapters import durable


def test_a_new_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "new"
    with durable.new_folder(path) as staged:
        durable.write(staged / "file", b"content")
        assert not path.exists()
        assert staged.parent == path.parent
        assert staged.name.startswith(".new-")
    assert (path / "file").read_bytes() == b"content"
    assert path.stat().st_mode & 0o777 == 0o755
    assert os.listdir(path.parent) == ["new"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with durable.new_folder(tmp_path / "new") as staged:
            (staged / "file").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_a_folder_goes_under_its_name_before_anything_of_it_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").touch()
    monkeypatch.setattr(durable.shutil, "rmtree", lambda path: None)
    durable.remove_folder(tmp_path / "old")
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".old-")
    assert (left / "old" / "file").exists()


def test_removing_leaves_nothing_also_of_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    for _ in range(2):
        durable.remove_folder(tmp_path / "old")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_what_is_there_is_never_replaced(tmp_path: Path, when: str) -> None:
    path = tmp_path / "new"
    if when == "before":
        path.mkdir()
    with pytest.raises(FileExistsError, match="new exists"), durable.new_folder(path):
        path.mkdir()
    assert os.listdir(tmp_path) == ["new"]
    assert not list(path.iterdir())
