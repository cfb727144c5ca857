"""/v1/adapters: publish, read, move and delete, with the errors that clients can act on."""

import asyncio
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from multiflora.adapters.registry import Registry
from multiflora.adapters.tier import Tier
from multiflora.server.publishing import Publisher

pytestmark = pytest.mark.anyio
Upload = Callable[..., Any]


@pytest.fixture
def registry(stored_registry: Registry) -> Registry:
    return stored_registry


@pytest.fixture
def publisher(stored_publisher: Publisher) -> Publisher:
    return stored_publisher


@pytest.fixture
def parts(write_adapter: Callable[..., Path]) -> Callable[..., dict[str, bytes]]:
    """``parts(seed=1)`` -> the two files of an adapter, as form fields."""

    def make(**changes: Any) -> dict[str, bytes]:
        folder = write_adapter("source", **changes)
        return {
            "config": (folder / "adapter_config.json").read_bytes(),
            "weights": (folder / "adapter_model.safetensors").read_bytes(),
        }

    return make


@pytest.fixture
def create(client, parts) -> Upload:
    async def post(name: str, *, headers=None, **changes: Any) -> Any:
        return await client.post(
            "/v1/adapters", data={"name": name}, files=parts(**changes), headers=headers
        )

    return post


@pytest.fixture
def replace(client, parts) -> Upload:
    async def put(name: str, *, headers=None, data=None, **changes: Any) -> Any:
        return await client.put(
            f"/v1/adapters/{name}", data=data, files=parts(**changes), headers=headers
        )

    return put


def error(response: Any) -> tuple[int, str, str | None]:
    shown = response.json()["error"]
    assert set(shown) == {"message", "type", "param", "code"}
    return response.status_code, shown["code"], shown["param"]


async def test_an_uploaded_adapter_answers_in_the_next_call(client, create, complete, engine):
    response = await create("poet")

    assert response.status_code == 201
    adapter = response.json()
    assert adapter["object"] == "adapter"
    assert (adapter["name"], adapter["rank"], adapter["pinned"]) == ("poet", 2, False)
    assert (adapter["state"], adapter["leases"], adapter["canary"]) == ("disk", 0, None)
    assert adapter["features"] == []
    assert adapter["bytes"] > 100
    assert response.headers["etag"] == f'"{adapter["version"]}"'
    assert (await complete(model="poet")).status_code == 200
    assert engine.requests[0].adapters[0].digest == adapter["version"]
    assert (await client.get("/v1/adapters/poet")).json() == {
        key: value for key, value in adapter.items() if key != "published"
    }


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
async def test_an_archive_is_the_same_version_as_its_files(client, create, parts, kind):
    files = parts()
    packed = io.BytesIO()
    names = {"config": "adapter_config.json", "weights": "adapter_model.safetensors"}
    if kind == "zip":
        with zipfile.ZipFile(packed, "w") as archive:
            for field, name in names.items():
                archive.writestr(name, files[field])
    else:
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for field, name in names.items():
                info = tarfile.TarInfo(f"poet/{name}")
                info.size = len(files[field])
                archive.addfile(info, io.BytesIO(files[field]))
    response = await client.post(
        "/v1/adapters", data={"name": "packed"}, files={"archive": packed.getvalue()}
    )

    assert response.status_code == 201
    assert response.json()["version"] == (await create("poet")).json()["version"]


async def test_a_new_version_swaps_and_a_rollback_brings_the_old_one_back(
    client, create, replace, complete
):
    old = (await create("poet")).json()["version"]
    response = await replace("poet", seed=2)
    new = response.json()["version"]

    assert response.status_code == 200
    assert new != old
    assert (await complete(model="poet")).headers["x-adapter-version"] == new
    rolled = (await client.post("/v1/adapters/poet/rollback")).json()
    assert (rolled["version"], rolled["versions"]) == (old, [old, new])
    again = await client.post("/v1/adapters/poet/rollback", json={"version": new})
    assert again.json()["version"] == new
    unknown = await client.post("/v1/adapters/poet/rollback", json={"version": "f" * 64})
    assert error(unknown) == (404, "unknown_version", "version")
    listed = (await client.get("/v1/adapters/poet/versions")).json()
    assert [(v["version"], v["active"]) for v in listed["data"]] == [(new, True), (old, False)]
    assert listed["data"][0]["source"] == "upload"
    history = (await client.get("/v1/adapters/poet/history?limit=2")).json()
    assert [event["action"] for event in history["data"]] == ["rollback", "rollback"]
    assert history["has_more"]


async def test_if_match_guards_every_move(client, create, replace):
    first = (await create("poet")).json()["version"]
    wrong = {"if-match": f'"{"e" * 64}"'}

    assert error(await replace("poet", seed=2, headers=wrong))[:2] == (412, "precondition_failed")
    for method, path in (("POST", "/rollback"), ("POST", "/promote"), ("DELETE", "")):
        refused = await client.request(method, f"/v1/adapters/poet{path}", headers=wrong)
        assert error(refused) == (412, "precondition_failed", "if-match")
    moved = await replace("poet", seed=2, headers={"if-match": f'"{first}"'})
    assert moved.status_code == 200
    assert error(await replace("nobody", headers=wrong))[0] == 412


async def test_without_activation_a_version_waits_for_its_canary(client, create, replace, registry):
    active = (await create("poet")).json()["version"]
    answer = (await replace("poet", seed=2, data={"activate": "false"})).json()
    waiting = answer["published"]
    assert (answer["version"], set(answer["versions"])) == (active, {active, waiting})

    canary = {"version": waiting, "weight": 0.25}
    response = await client.post("/v1/adapters/poet/canary", json=canary)

    assert response.json()["canary"] == canary
    assert (await client.post("/v1/adapters/poet/promote")).json()["version"] == waiting
    assert error(await client.post("/v1/adapters/poet/promote")) == (
        *(400, "invalid_canary"),
        "weight",
    )
    missing = await replace("nobody", data={"activate": "false"})
    assert error(missing) == (404, "unknown_adapter", "name")
    assert registry.candidates() == ()


async def test_a_canary_is_ended_by_weight_0_and_refuses_nonsense(client, create, replace):
    active = (await create("poet")).json()["version"]
    other = (await replace("poet", seed=2, data={"activate": "false"})).json()["published"]
    canary = "/v1/adapters/poet/canary"
    await client.post(canary, json={"version": other, "weight": 0.5})

    ended = await client.post(canary, json={"weight": 0})

    assert ended.json()["canary"] is None
    for body, code in (
        ({"version": active, "weight": 0.5}, "invalid_canary"),
        ({"version": other, "weight": 1.5}, "invalid_request"),
        ({"version": other}, "invalid_request"),
        ({"weight": 0.5}, "invalid_request"),
        ({"version": other, "weight": 0.5, "share": 1}, "unknown_parameter"),
    ):
        refused = await client.post(canary, json=body)
        assert error(refused)[:2] == (400, code), body


async def test_states_and_warming(client, create, engine):
    version = (await create("poet")).json()["version"]
    assert (await client.get("/v1/adapters/poet")).json()["state"] == "disk"
    assert (await client.post("/v1/adapters/poet/warm")).json()["state"] == "host"
    engine.tiers[version] = Tier.DEVICE
    (listed,) = (await client.get("/v1/adapters/poet/versions")).json()["data"]
    assert listed["state"] == "device"
    assert (await client.post("/v1/adapters/nobody/warm")).status_code == 404


async def test_lists_are_paged_by_name(client, create):
    for name in ("c", "a", "d", "b"):
        await create(name)

    first = (await client.get("/v1/adapters?limit=3")).json()
    rest = (await client.get(f"/v1/adapters?limit=3&after={first['last_id']}")).json()

    assert first["object"] == "list"
    assert [adapter["name"] for adapter in first["data"]] == ["a", "b", "c"]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert [adapter["name"] for adapter in rest["data"]] == ["d"]
    assert error(await client.get("/v1/adapters?limit=0"))[::2] == (400, "limit")


async def test_a_download_is_the_adapter_again(client, create):
    version = (await create("poet")).json()["version"]

    response = await client.get("/v1/adapters/poet/download")
    archive = {"archive": response.content}
    again = await client.post("/v1/adapters", data={"name": "copy"}, files=archive)

    assert int(response.headers["content-length"]) == len(response.content)
    with tarfile.open(fileobj=io.BytesIO(response.content)) as packed:
        names = packed.getnames()
    assert names == ["poet/adapter_config.json", "poet/adapter_model.safetensors"]
    assert again.json()["version"] == version
    missing = await client.get(f"/v1/adapters/poet/download?version={'f' * 64}")
    assert error(missing)[:2] == (404, "unknown_version")


async def test_a_deleted_name_is_gone_and_can_be_made_again(client, create, complete, registry):
    version = (await create("poet")).json()["version"]

    response = await client.delete("/v1/adapters/poet")

    assert response.json() == {
        **{"id": "poet", "object": "adapter.deleted"},
        **{"name": "poet", "deleted": True},
    }
    assert (await complete(model="poet")).status_code == 404
    assert error(await client.delete("/v1/adapters/poet")) == (404, "unknown_adapter", "name")
    assert error(await client.get("/v1/adapters/poet"))[0] == 404
    assert registry.collect() == (version,)
    assert (await create("poet")).json()["version"] == version


@pytest.mark.parametrize("name", ["", "a/b", "merge", "base", "-x", "a" * 129, "a b", "ü", "../up"])
async def test_a_name_that_cannot_be(create, name, registry):
    assert error(await create(name)) == (400, "invalid_name", "name")
    assert registry.entries() == ()
    assert registry.store.digests() == ()


async def test_a_name_that_is_taken(client, create):
    await create("poet")
    response = await create("poet", seed=2)

    assert error(response) == (409, "adapter_conflict", "name")
    assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"use_dora": True}, "missing_tensor"),
        ({"modules_to_save": ["norm"]}, "unsupported_feature"),
        ({"size": 9}, "wrong_shape"),
        ({"target_modules": ["q_proj"]}, "unmatched_tensor"),
        ({"r": 3}, "wrong_shape"),
        ({"peft_type": "LOHA"}, "unsupported_type"),
    ],
)
async def test_a_refused_file_leaves_nothing_behind(create, registry, changes, code, tmp_path):
    response = await create("poet", **changes)

    assert error(response) == (400, code, None)
    assert str(tmp_path) not in response.text
    assert registry.entries() == ()
    registry.collect()
    assert [path for path in (tmp_path / "data" / "adapters").rglob("*") if path.is_file()] == []


async def test_a_repeated_request_is_answered_as_before(client, create, replace):
    key = {"idempotency-key": "k-1"}
    first = await create("poet", headers=key)
    again = await create("poet", headers=key)

    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["etag"] == first.headers["etag"]
    other = await create("poet", seed=2, headers=key)
    assert error(other) == (409, "idempotency_key_reused", "idempotency-key")
    await replace("poet", seed=2)
    await replace("poet", seed=3)
    rollback = [
        await client.post("/v1/adapters/poet/rollback", headers={"idempotency-key": "k-2"})
        for _ in range(3)
    ]
    assert len({response.content for response in rollback}) == 1


async def test_an_error_does_not_use_up_the_key(create):
    key = {"idempotency-key": "k"}
    assert (await create("poet", use_dora=True, headers=key)).status_code == 400
    assert (await create("poet", headers=key)).status_code == 201


async def test_a_key_in_use_is_told_so(client, create, publisher, monkeypatch):
    gate = asyncio.Event()
    run = publisher.run

    async def wait(*args, **kwargs):
        await gate.wait()
        return await run(*args, **kwargs)

    monkeypatch.setattr(publisher, "run", wait)
    key = {"idempotency-key": "k"}
    first = asyncio.create_task(create("poet", headers=key))
    await asyncio.sleep(0.2)
    second = await create("poet", headers=key)
    gate.set()

    assert error(second)[:2] == (409, "idempotency_key_in_use")
    assert (await first).status_code == 201


async def test_after_a_crash_a_key_repeats_what_is_safe_to_repeat(
    client, create, registry, parts, replace
):
    """A row without an answer is what a server leaves that dies in the middle."""
    paths = {"create": "/v1/adapters", "back": "/v1/adapters/poet/rollback"}
    await create("poet")
    await replace("poet", seed=2)
    form = {"name": b"poet", **parts(seed=2)}
    lines = [f"{name}={hashlib.sha256(form[name]).hexdigest()}\n" for name in sorted(form)]
    prints = {
        "create": hashlib.sha256("".join(lines).encode()).hexdigest(),
        "back": hashlib.sha256(b"").hexdigest(),
    }
    for key, path in paths.items():
        asked = "\n".join(("POST", path, "", prints[key], ""))
        registry.answers.begin(key, hashlib.sha256(asked.encode()).hexdigest())

    created = await create("poet", seed=2, headers={"idempotency-key": "create"})
    back = await client.post("/v1/adapters/poet/rollback", headers={"idempotency-key": "back"})

    assert created.status_code == 201
    assert error(back)[:2] == (409, "outcome_unknown")


async def test_changes_are_counted(client, create):
    await create("poet")
    await client.post("/v1/adapters/poet/pin")

    text = (await client.get("/metrics")).text
    assert 'multiflora_adapter_changes_total{action="publish"} 1.0' in text
    assert 'multiflora_adapter_changes_total{action="pin"} 1.0' in text
