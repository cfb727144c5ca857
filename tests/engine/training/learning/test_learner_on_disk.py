"""What is deleted or erased leaves the disk, whoever reads meanwhile and whatever dies."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from multiflora.adapters import database
from multiflora.adapters.error import RegistryUnavailable
from multiflora.adapters.registry import DATABASE_NAME

from .conftest import Loop, make_loop

pytestmark = pytest.mark.anyio


def is_on_disk(text: str, folder: Path) -> bool:
    return any(text.encode() in path.read_bytes() for path in folder.glob(f"{DATABASE_NAME}*"))


@pytest.fixture
def loop_on_disk(tmp_path: Path) -> Iterator[Loop]:
    loop = make_loop(tmp_path, is_on_disk=True)
    yield loop
    loop.registry.close()


@contextmanager
def reader(folder: Path) -> Iterator[None]:
    """Another program that reads the database."""
    with closing(sqlite3.connect(folder / DATABASE_NAME)) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM completion").fetchone()
        yield


async def test_what_a_deleted_name_kept_leaves_the_disk_though_a_reader_was_in_the_way(
    loop_on_disk: Loop, tmp_path: Path
) -> None:
    loop = loop_on_disk
    await loop.opt_in()
    await loop.learner.start()
    await loop.learner.tick()
    copy = tmp_path / f"{DATABASE_NAME}.schema-1"
    copy.write_text("my secret")
    with reader(tmp_path):
        loop.edit(1, question="my secret")
        loop.registry.delete("poet")
        await loop.learner.tick()
        assert is_on_disk("my secret", tmp_path)
    loop.now += 60
    await loop.learner.tick()
    assert not is_on_disk("my secret", tmp_path)
    assert not copy.exists()


async def test_the_loop_goes_on_while_another_program_reads(
    loop_on_disk: Loop, tmp_path: Path
) -> None:
    loop = loop_on_disk
    await loop.opt_in()
    loop.edit()
    with reader(tmp_path):
        await loop.learner.start()
        await loop.learner.tick()
        assert (await loop.run_job()).status == "succeeded"


async def test_what_a_name_kept_leaves_the_disk_though_the_server_died_when_it_was_deleted(
    loop_on_disk: Loop, tmp_path: Path
) -> None:
    loop = loop_on_disk
    await loop.opt_in()
    loop.edit(1, question="my secret")
    loop.registry.delete("poet")
    assert is_on_disk("my secret", tmp_path)
    copy = tmp_path / f"{DATABASE_NAME}.schema-1"
    copy.write_text("what an update started from")
    await loop.restart()
    await loop.learner.tick()
    assert not is_on_disk("my secret", tmp_path)
    assert copy.exists()


async def test_erased_feedback_leaves_the_disk_though_its_request_failed(
    loop_on_disk: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = loop_on_disk
    await loop.opt_in(min_rows=9)
    await loop.learner.tick()
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0)
    with reader(tmp_path):
        loop.edit(1, question="my secret", user="ann")
        with pytest.raises(RegistryUnavailable, match="another program"):
            await loop.learner.erase(user="ann")
    assert is_on_disk("my secret", tmp_path)
    await loop.learner.tick()
    assert not is_on_disk("my secret", tmp_path)
