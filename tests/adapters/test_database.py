"""One process at a time, all or nothing, and a clear word when the file cannot be used."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from multiflora.adapters.database import Database
from multiflora.adapters.error import RegistryUnavailable, UnknownVersion
from multiflora.adapters.folder import AdapterFolder
from multiflora.adapters.registry import DATABASE_NAME, Registry
from multiflora.adapters.registry_schema import MIGRATIONS
from multiflora.adapters.version import Version

FIRST = "CREATE TABLE thing (name TEXT PRIMARY KEY) STRICT; CREATE TABLE other (x) "
SECOND = "ALTER TABLE thing ADD COLUMN size INTEGER NOT NULL DEFAULT 3"
BROKEN = "CREATE TABLE more (x); INSERT INTO nowhere VALUES (1)"


def things(database: Database) -> list[tuple[object, ...]]:
    with database.reading() as connection:
        return connection.execute("SELECT * FROM thing").fetchall()


def insert(database: Database, name: str) -> None:
    with database.transaction() as connection:
        connection.execute("INSERT INTO thing (name) VALUES (?)", (name,))


def insert_twice(database: Database, name: str) -> None:
    with database.transaction() as connection:
        for _ in range(2):
            connection.execute("INSERT INTO thing (name) VALUES (?)", (name,))


def test_a_commit_outlives_the_process_that_is_not_told_to_stop(tmp_path: Path) -> None:
    script = (
        "import os, sys, pathlib; from multiflora.adapters.database import Database\n"
        "db = Database.open(pathlib.Path(sys.argv[1]), [sys.argv[2]])\n"
        "with db.transaction() as c: c.execute(\"INSERT INTO thing VALUES ('kept')\")\n"
        "c.execute('BEGIN'); c.execute(\"INSERT INTO thing VALUES ('lost')\"); os._exit(9)\n"
    )
    path = tmp_path / "new" / "folder" / "file.db"
    assert subprocess.run([sys.executable, "-c", script, path, FIRST]).returncode == 9
    database = Database.open(path, [FIRST])
    assert things(database) == [("kept",)]
    database.close()


def test_commits_wait_for_the_disk(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "file.db", [FIRST])
    with database.reading() as connection:
        found = [
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys", "user_version")
        ]
    assert found == ["wal", 2, 1, 1]
    database.close()


def test_a_transaction_that_raises_changes_nothing() -> None:
    database = Database.in_memory([FIRST])
    with pytest.raises(sqlite3.IntegrityError):
        insert_twice(database, "x")
    assert things(database) == []
    insert(database, "y")
    assert things(database) == [("y",)]
    database.close()


def test_a_second_user_is_told_who_holds_the_file(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from multiflora.adapters.registry import Registry\n"
        "registry = Registry.open(pathlib.Path(sys.argv[1]))\n"
        "print('open', flush=True); sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"open\n"
    with pytest.raises(RegistryUnavailable, match=f"in use by process {other.pid}; .*--data-dir"):
        Registry.open(tmp_path)
    other.kill()
    other.communicate()
    registry = Registry.open(tmp_path)
    with pytest.raises(RegistryUnavailable, match="in use"):
        Registry.open(tmp_path)
    registry.close()
    registry.close()
    Registry.open(tmp_path).close()


def test_an_older_schema_is_migrated_after_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "file.db"
    database = Database.open(path, [FIRST])
    insert(database, "x")
    database.close()
    database = Database.open(path, [FIRST, SECOND])
    assert things(database) == [("x", 3)]
    database.close()
    copy = Database.open(tmp_path / "file.db.schema-1", [FIRST])
    assert things(copy) == [("x",)]
    copy.close()
    with pytest.raises(RegistryUnavailable, match="schema 2, this version knows 1; install"):
        Database.open(path, [FIRST])


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file.db"
    Database.open(path, [FIRST]).close()
    with pytest.raises(RegistryUnavailable, match="nowhere"):
        Database.open(path, [FIRST, BROKEN])
    database = Database.open(path, [FIRST, SECOND])
    assert things(database) == []
    database.close()


@pytest.mark.parametrize("start", [0, 5000])
def test_a_damaged_file_is_named_with_a_remedy(tmp_path: Path, start: int) -> None:
    Database.open(tmp_path / "file.db", [*MIGRATIONS]).close()
    content = bytearray((tmp_path / "file.db").read_bytes())
    content[start : start + 9000] = b"\xa5" * 9000
    (tmp_path / "file.db").write_bytes(content)
    with pytest.raises(RegistryUnavailable, match=r"file\.db is damaged .*backup"):
        Database.open(tmp_path / "file.db", MIGRATIONS)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RegistryUnavailable, match="cannot be opened"):
        Registry.open(tmp_path / "file" / "data")
    (tmp_path / "data" / DATABASE_NAME).mkdir(parents=True)
    with pytest.raises(RegistryUnavailable, match="unable to open"):
        Registry.open(tmp_path / "data")


def test_a_full_disk_changes_nothing(tmp_path: Path, tiny_folder: AdapterFolder) -> None:
    registry = Registry.open(tmp_path)
    assert registry.store is not None
    registry.store.put_copy("a" * 64, tiny_folder)
    registry.publish("tone", "a" * 64)
    registry.store.put_copy("b" * 64, tiny_folder)
    with registry.database.reading() as connection:
        (num_pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {num_pages}")
        with pytest.raises(RegistryUnavailable, match=r"full.*nothing was changed"):
            registry.publish_version(Version("b" * 64, source="x" * 100_000))
        connection.execute("PRAGMA max_page_count = 100000")
    with pytest.raises(UnknownVersion):
        registry.version("b" * 64)
    assert registry.publish("tone", "b" * 64).digest == "b" * 64
    registry.close()


def test_the_schema_is_strict_about_references() -> None:
    database = Database.in_memory(MIGRATIONS)
    with pytest.raises(sqlite3.IntegrityError), database.transaction() as connection:
        connection.execute("INSERT INTO name VALUES ('a', ?, 0, 0, 0, '')", ("f" * 64,))
    database.close()
