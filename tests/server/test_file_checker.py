"""Checks go on after a restart, and never hold a server up that is to end."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from multiflora.adapters.database import Database
from multiflora.adapters.registry_schema import MIGRATIONS
from multiflora.engine.training.data import file_check
from multiflora.engine.training.data.file_registry import FileRegistry
from multiflora.server.file_checker import FileChecker


@pytest.fixture
def files(tmp_path: Path) -> FileRegistry:
    return FileRegistry(Database.in_memory(MIGRATIONS), tmp_path)


@pytest.fixture
def add(files: FileRegistry) -> Callable[[bytes], str]:
    def run(content: bytes) -> str:
        with files.staging() as folder:
            (folder / "x").write_bytes(content)
            return files.add(folder / "x", filename="x", purpose="fine-tune").id

    return run


def wait(files: FileRegistry) -> None:
    deadline = time.monotonic() + 30
    while files.unchecked():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_an_earlier_server_did_not_check_is_checked(files, add):
    good, bad = add(b'{"text": "a"}\n'), add(b"{}\n")

    checker = FileChecker(files)
    checker.resume()
    wait(files)
    checker.close()

    assert files.get(good).status == "processed"
    assert files.get(bad).status == "error"
    assert files.get(bad).details.startswith("line 1: ")


def test_an_end_leaves_the_rest_to_the_next_start(files, add, monkeypatch):
    monkeypatch.setattr(file_check, "_PROGRAM", "import time; time.sleep(60)")
    ids = [add(b"{}") for _ in range(3)]
    checker = FileChecker(files)
    checker.resume()
    time.sleep(0.2)

    began = time.monotonic()
    checker.close()

    assert time.monotonic() - began < 10
    assert files.unchecked() == ids


def test_a_file_that_goes_before_its_turn_is_no_fault(files, add, caplog):
    file_id = add(b"{}")
    files.delete(file_id)
    checker = FileChecker(files)
    checker.submit(file_id)
    other = add(b'{"text": "a"}')
    checker.submit(other)
    wait(files)
    checker.close()

    assert files.get(other).status == "processed"
    assert caplog.records == []
