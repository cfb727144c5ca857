"""`multiflora keys` against a database, a file and a running server."""

from pathlib import Path

import pytest

from multiflora.adapters.database import Database
from multiflora.adapters.registry import DATABASE_NAME
from multiflora.adapters.registry_schema import MIGRATIONS
from multiflora.server.access.key_file import KeyFile
from multiflora.server.access.key_registry import KeyRegistry
from multiflora.server.access.keyring import Keyring
from multiflora.server.cli import main
from multiflora.server.settings_source import KEY_VARIABLE


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["keys", *map(str, arguments)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_key_for_a_stopped_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ("--data-dir", tmp_path)
    assert run("create", "ci", "--scopes", "training", "--tenant", "red", *place) == 0
    text = capsys.readouterr().out.strip()
    database = Database.open(tmp_path / DATABASE_NAME, MIGRATIONS)
    caller = Keyring(KeyRegistry(database)).authenticate(f"Bearer {text}")
    assert (caller.tenant, sorted(caller.scopes)) == ("red", ["training"])

    assert run("list", *place) == 1
    assert "--server" in capsys.readouterr().err
    database.close()
    assert run("revoke", caller.id, *place) == 0
    assert run("list", *place) == 0
    assert "revoked" in capsys.readouterr().out


def test_a_key_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.jsonl"
    options = ("--limits", "requests=5,concurrent=2", "--expires-days", 3)
    assert run("create", "ci", *options, "--api-key-file", path) == 0
    (key,) = KeyFile(path).keys()
    assert (key.limits.requests_per_minute, key.limits.max_concurrent) == (5, 2)
    assert key.expires == key.created + 3 * 24 * 3600
    assert run("revoke", "nobody", "--api-key-file", path) == 1
    assert "no API key" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"),
    [("--scopes", "root"), ("--limits", "speed=3"), ("--limits", "requests=x"), ("--tenant", "/")],
)
def test_mistakes_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    assert run("create", "ci", option, value, "--data-dir", tmp_path) == 2
    assert value.partition("=")[0] in capsys.readouterr().err


@pytest.mark.anyio
async def test_keys_of_a_running_server(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    async def ask(*arguments: str) -> int:
        return await asyncio.to_thread(run, *arguments, "--server", url)

    assert await ask("create", "root", "--scopes", "admin") == 0
    monkeypatch.setenv(KEY_VARIABLE, capsys.readouterr().out.strip())
    assert await ask("create", "ci", "--tenant", "red") == 0
    monkeypatch.setenv("COLUMNS", "200")
    assert await ask("list") == 0
    listed = capsys.readouterr().out
    assert "root" in listed
    assert "red" in listed
    monkeypatch.setenv(KEY_VARIABLE, "wrong")
    assert await ask("list") == 2
    assert "API key" in capsys.readouterr().err
