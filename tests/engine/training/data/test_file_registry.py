"""Files survive what happens to a process, and nothing that was refused or lost stays behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from multiflora.adapters.database import Database
from multiflora.adapters.registry import DATABASE_NAME
from multiflora.adapters.registry_schema import MIGRATIONS
from multiflora.engine.training.data.file_registry import FileInUse, FileRegistry, UnknownFile

# Adds two files, deletes the first and sweeps; it dies at the given call of the system.
SCRIPT = """
import os, signal, sys
from pathlib import Path
from multiflora.adapters.database import Database
from multiflora.adapters.registry import DATABASE_NAME
from multiflora.adapters.registry_schema import MIGRATIONS
from multiflora.engine.training.data.file_registry import FileRegistry

data, fatal = Path(sys.argv[1]), int(sys.argv[2])
files = FileRegistry(Database.open(data / DATABASE_NAME, MIGRATIONS), data)
calls = 0

def watched(call):
    def watch(*arguments, **options):
        global calls
        calls += 1
        if calls == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return watch

for name in ("open", "rename", "fsync", "unlink", "mkdir"):
    setattr(os, name, watched(getattr(os, name)))
transaction = files._database.transaction
files._database.transaction = watched(transaction)
made = []
for number in range(2):
    with files.staging() as folder:
        (folder / "x").write_bytes(b"row %d" % number)
        made.append(files.add(folder / "x", filename=str(number), purpose="p").id)
        print("added", made[-1], flush=True)
files.delete(made[0])
print("deleted", made[0], flush=True)
files.sweep()
print("done", flush=True)
"""


@pytest.fixture
def files(tmp_path: Path) -> FileRegistry:
    return FileRegistry(Database.in_memory(MIGRATIONS), tmp_path)


def add(files: FileRegistry, content: bytes = b"x", **more: int) -> str:
    with files.staging() as folder:
        (folder / "x").write_bytes(content)
        return files.add(folder / "x", filename="x", purpose="fine-tune", **more).id  # type: ignore[arg-type]


def names(data: Path) -> set[str]:
    return {path.name for path in (data / "files").iterdir()}


def run(data: Path, fatal: int) -> tuple[list[list[str]], int]:
    """The lines that the script printed, and its exit status."""
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, data, str(fatal)], capture_output=True, text=True
    )
    assert result.returncode in (0, -signal.SIGKILL), result.stderr
    return [line.split() for line in result.stdout.splitlines()], result.returncode


def test_death_at_any_call_loses_nothing_acknowledged(tmp_path: Path) -> None:
    status, fatal = -signal.SIGKILL, 0
    while status != 0:
        fatal += 1
        data = tmp_path / str(fatal)
        lines, status = run(data, fatal)
        database = Database.open(data / DATABASE_NAME, MIGRATIONS)
        files = FileRegistry(database, data)
        files.sweep()
        known = {file.id: file.filename for file in files.page()[0]}
        if known or (data / "files").exists():
            assert names(data) == set(known), fatal
        for file_id, number in known.items():
            with files.open(file_id) as file:
                assert file.read() == f"row {number}".encode(), fatal
        deleted = {words[1] for words in lines if words[0] == "deleted"}
        added = {words[1] for words in lines if words[0] == "added"}
        assert not deleted & set(known), fatal
        in_doubt = {"0"} if len(added) == 2 and not deleted else set()
        assert {known.get(file_id, "0") for file_id in added - deleted - set(known)} <= in_doubt
        database.close()
    assert fatal > 15


def test_rows_that_lost_their_bytes_say_so(files: FileRegistry, tmp_path: Path) -> None:
    file_id = add(files)
    os.unlink(tmp_path / "files" / file_id)
    files.sweep()
    assert files.get(file_id).status == "error"
    assert "upload the file again" in (files.get(file_id).details or "")
    with pytest.raises(UnknownFile):
        files.open(file_id)


def test_a_sweep_leaves_alone_what_is_on_its_way(files: FileRegistry, tmp_path: Path) -> None:
    with files.staging() as folder:
        (folder / "x").write_bytes(b"x")
        (tmp_path / "files" / ".incoming-old").mkdir()
        (tmp_path / "files" / "file-orphan").write_bytes(b"x")
        files.sweep()
        assert names(tmp_path) == {folder.name}
        file_id = files.add(folder / "x", filename="x", purpose="p").id
    assert names(tmp_path) == {file_id}


def test_a_verdict_about_a_deleted_file_is_no_file(files: FileRegistry) -> None:
    file_id = add(files)
    assert files.unchecked() == [file_id]
    files.delete(file_id)
    files.settle(file_id, "processed")
    assert files.unchecked() == []
    with pytest.raises(UnknownFile, match=file_id):
        files.get(file_id)


def test_the_first_guard_with_a_reason_keeps_a_file(files: FileRegistry, tmp_path: Path) -> None:
    file_id, clock = add(files, expires_after=10), files._clock
    files.guard(lambda each: None)
    files.guard(lambda each: "job 1 reads it" if each == file_id else None)
    with pytest.raises(FileInUse, match="job 1 reads it"):
        files.delete(file_id)
    files._clock = lambda: clock() + 11
    files.sweep()
    assert names(tmp_path) == {file_id}
    assert files.page() == ([], False)


def test_ids_never_become_paths(files: FileRegistry, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    for name in ("../secret", "/etc/passwd", "", ".", "file-", "%"):
        for call in (files.open, files.path, files.delete, files.get):
            with pytest.raises(UnknownFile):
                call(name)
