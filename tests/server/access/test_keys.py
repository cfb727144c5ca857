"""API keys: made once, kept as hashes, refused when they should be; over the API and in files."""

import hashlib
import hmac
import os
from pathlib import Path

import httpx
import pytest

from multiflora.adapters.database import Database
from multiflora.adapters.registry import DATABASE_NAME
from multiflora.adapters.registry_schema import MIGRATIONS
from multiflora.server.access.api_key import KeyWish, parse_scopes
from multiflora.server.access.caller import Scope
from multiflora.server.access.error import InvalidKey
from multiflora.server.access.key_file import KeyFile
from multiflora.server.access.key_registry import KeyRegistry
from multiflora.server.access.keyring import Keyring
from multiflora.server.errors import UnknownKey
from multiflora.server.service import Service

pytestmark = pytest.mark.anyio
WISH = KeyWish(name="ci", scopes=frozenset({Scope.INFERENCE}), tenant="red")
ADMIN = KeyWish(name="root", scopes=frozenset({Scope.ADMIN}))


def registry(path: Path | None = None, **options: object) -> KeyRegistry:
    database = Database.open(path, MIGRATIONS) if path else Database.in_memory(MIGRATIONS)
    return KeyRegistry(database, **options)  # type: ignore[arg-type]


def test_only_a_hash_of_a_key_is_kept(tmp_path: Path) -> None:
    path = tmp_path / DATABASE_NAME
    key, text = registry(path).create(WISH)
    assert key.hash == hashlib.sha256(text.encode()).hexdigest()
    kept = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert key.hash.encode() in kept
    assert text.rpartition("-")[2].encode() not in kept


def test_a_key_names_its_caller_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / DATABASE_NAME
    first = Database.open(path, MIGRATIONS)
    _, text = KeyRegistry(first).create(WISH)
    first.close()
    caller = Keyring(registry(path)).authenticate(f"Bearer {text}")
    assert (caller.tenant, caller.scopes) == ("red", {Scope.INFERENCE})


def test_a_key_expires() -> None:
    now = 1000.0
    keys = registry(clock=lambda: now)
    _, text = keys.create(KeyWish(name="x", scopes=WISH.scopes, expires=1010))
    ring = Keyring(keys, clock=lambda: now)
    assert ring.authenticate(f"bearer {text}").scopes == WISH.scopes
    now = 1010.0
    with pytest.raises(InvalidKey):
        ring.authenticate(f"Bearer {text}")
    with pytest.raises(ValueError, match="expired before"):
        keys.create(KeyWish(name="x", scopes=WISH.scopes, expires=1010))


@pytest.mark.parametrize("name", ["unknown id", "wrong secret", "malformed", "revoked", "scheme"])
def test_every_wrong_key_costs_and_says_the_same(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    keys = registry()
    (good, text), (old, old_text) = keys.create(ADMIN), keys.create(WISH)
    keys.revoke(old.id)
    attempts = {
        "unknown id": f"Bearer {text.replace(good.id, '0' * 12)}",
        "wrong secret": f"Bearer mf-{good.id}-{'x' * 43}",
        "malformed": "Bearer x",
        "revoked": f"Bearer {old_text}",
        "scheme": f"Basic0 {text}",
    }
    compared: list[tuple[str, str]] = []

    def compare(first: str, second: str) -> bool:
        compared.append((first, second))
        return first == second

    monkeypatch.setattr(hmac, "compare_digest", compare)
    with pytest.raises(InvalidKey, match=r"^the API key is wrong, has expired or was revoked$"):
        Keyring(keys).authenticate(attempts[name])
    ((kept, given),) = compared
    assert len(kept) == len(given) == 64


def test_revoking_the_last_key_does_not_open_the_server() -> None:
    keys = registry()
    key, text = keys.create(ADMIN)
    keys.revoke(key.id)
    assert keys.revoke(key.id).revoked is not None
    ring = Keyring(keys)
    assert not ring.is_open
    for attempt in (None, f"Bearer {text}", "Bearer "):
        with pytest.raises(InvalidKey):
            ring.authenticate(attempt)
    with pytest.raises(UnknownKey):
        keys.revoke("nobody")


@pytest.mark.parametrize(
    "wish",
    [
        KeyWish(name="", scopes=WISH.scopes),
        KeyWish(name="a\nb", scopes=WISH.scopes),
        KeyWish(name="x", scopes=frozenset()),
        KeyWish(name="x", scopes=WISH.scopes, tenant="../red"),
    ],
    ids=["nameless", "two_lines", "useless", "path"],
)
def test_a_senseless_key_is_not_made(wish: KeyWish) -> None:
    keys = registry()
    with pytest.raises(ValueError):
        keys.create(wish)
    assert keys.keys() == ()


def test_scopes_are_read_or_refused() -> None:
    assert parse_scopes("inference, training") == {Scope.INFERENCE, Scope.TRAINING}
    with pytest.raises(ValueError, match="'root' is no scope"):
        parse_scopes("root")


def test_a_file_is_read_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("multiflora.server.access.key_file._LOOK_SECONDS", 0)
    path = tmp_path / "keys.jsonl"
    writer = KeyFile(path)
    key, text = writer.create(WISH)
    ring = Keyring(registry(), KeyFile.open(path))
    assert ring.authenticate(f"Bearer {text}").id == key.id
    path.write_text("{")
    os.utime(path, (1, 1))
    assert ring.authenticate(f"Bearer {text}").id == key.id
    assert "the API keys stay as they were" in caplog.text
    writer.revoke(key.id)
    with pytest.raises(InvalidKey):
        ring.authenticate(f"Bearer {text}")


@pytest.mark.parametrize("content", ["{", '{"id": "x"}', "TWICE"], ids=["cut", "missing", "twice"])
def test_a_malformed_file_is_refused_with_its_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.jsonl"
    KeyFile(path).create(WISH)
    line = path.read_text()
    path.write_text(line + (line if content == "TWICE" else content))
    with pytest.raises(ValueError, match="line 2"):
        KeyFile.open(path)


def test_a_key_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file"):
        KeyFile.open(tmp_path / "absent")


async def test_keys_over_the_api(client: httpx.AsyncClient, service: Service) -> None:
    refused = await client.post("/v1/keys", json={"name": "x", "scopes": ["inference"]})
    assert refused.json()["error"]["param"] == "scopes", "nobody could make another"

    made = (await client.post("/v1/keys", json={"name": "root", "scopes": ["admin"]})).json()
    assert (await client.get("/v1/keys")).status_code == 401

    client.headers["authorization"] = f"Bearer {made['key']}"
    body = {"name": "ci", "scopes": ["inference"], "limits": {"max_concurrent": 2}}
    other = (await client.post("/v1/keys", json=body)).json()
    listed = (await client.get("/v1/keys")).json()["data"]
    assert [item["name"] for item in listed] == ["root", "ci"]
    assert not any("key" in item or "hash" in item for item in listed)
    assert listed[1]["limits"]["max_concurrent"] == 2

    as_other = {"authorization": f"Bearer {other['key']}"}
    assert (await client.get("/v1/models", headers=as_other)).status_code == 200
    revoked = await client.delete(f"/v1/keys/{other['id']}")
    assert revoked.json()["revoked_at"] is not None
    assert (await client.get("/v1/models", headers=as_other)).status_code == 401
    missing = await client.delete("/v1/keys/nobody")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "unknown_key")


@pytest.mark.parametrize(
    "fields",
    [{"scopes": ["root"]}, {"scopes": []}, {"tenant": "a/b"}, {"expires_at": 5}, {"limit": 1}],
    ids=repr,
)
async def test_a_bad_key_is_refused(client: httpx.AsyncClient, fields: dict[str, object]) -> None:
    response = await client.post("/v1/keys", json={"name": "x", "scopes": ["admin"], **fields})
    assert response.status_code == 400, response.text
    assert (await client.get("/v1/models")).status_code == 200, "no key was made"
