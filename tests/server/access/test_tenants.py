"""What one tenant makes, another neither sees nor uses; absent and hidden things look alike."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from multiflora.adapters.registry import Registry
from multiflora.engine.kv_blocks import root_key
from multiflora.engine.request import AdapterShare
from multiflora.server.access.caller import Scope
from multiflora.server.app import create_app
from multiflora.server.service import Service

pytestmark = pytest.mark.anyio
Tenant = Callable[..., httpx.AsyncClient]


@pytest.fixture
def registry(stored_registry: Registry) -> Registry:
    return stored_registry


def form(folder: Path) -> dict[str, bytes]:
    return {
        "config": (folder / "adapter_config.json").read_bytes(),
        "weights": (folder / "adapter_model.safetensors").read_bytes(),
    }


@pytest.fixture
def publisher(stored_publisher: Any) -> Any:
    return stored_publisher


async def upload(client: httpx.AsyncClient, folder: Path, name: str) -> httpx.Response:
    return await client.post("/v1/adapters", data={"name": name}, files=form(folder))


async def test_adapters_are_seen_and_used_by_their_tenant_alone(
    tenant: Tenant, engine: Any, write_adapter: Callable[..., Path]
) -> None:
    red, blue, admin = tenant("red"), tenant("blue"), tenant("", frozenset({Scope.ADMIN}))
    folder = write_adapter()
    assert (await upload(red, folder, "mine")).status_code == 201
    assert (await upload(admin, folder, "common")).status_code == 201

    for client, names in ((red, ["common", "mine"]), (blue, ["common"])):
        models = (await client.get("/v1/models")).json()["data"]
        assert [card["id"] for card in models] == ["base", *names]
        adapters = (await client.get("/v1/adapters")).json()["data"]
        assert [item["name"] for item in adapters] == names

    ask = {"prompt": "hi", "max_tokens": 1}
    for name in ("mine", "base:mine"):
        hidden = await blue.post("/v1/completions", json={"model": name, **ask})
        absent = await blue.post("/v1/completions", json={"model": "none", **ask})
        assert hidden.status_code == absent.status_code == 404
        assert hidden.text.replace(name, "none") == absent.text
        assert (await blue.get(f"/v1/models/{name}")).status_code == 404
    blend = {"model": "base", "adapters": [{"name": "mine"}], **ask}
    assert (await blue.post("/v1/completions", json=blend)).status_code == 404
    assert engine.requests == []

    for client, who in ((red, "red"), (blue, "blue"), (admin, "")):
        response = await client.post("/v1/completions", json={"model": "common", **ask})
        assert response.status_code == 200
        assert engine.requests[-1].tenant == who
    assert (await red.post("/v1/completions", json={"model": "mine", **ask})).status_code == 200


async def test_a_name_is_changed_by_its_owner_alone(
    tenant: Tenant, registry: Registry, write_adapter: Callable[..., Path]
) -> None:
    red, blue, admin = tenant("red"), tenant("blue"), tenant("", frozenset({Scope.ADMIN}))
    first, second = write_adapter("first"), write_adapter("second", seed=2)
    await upload(red, first, "mine")
    await upload(admin, first, "common")

    assert (await upload(blue, second, "mine")).json()["error"]["code"] == "adapter_conflict"
    put = await blue.put("/v1/adapters/mine", files=form(second))
    assert (put.status_code, put.json()["error"]["code"]) == (409, "adapter_conflict")
    assert put.headers["x-should-retry"] == "false"
    shared = await blue.put("/v1/adapters/common", files=form(second))
    assert (shared.status_code, shared.json()["error"]["code"]) == (403, "not_owner")
    for name in ("mine", "none"):
        assert (await blue.delete(f"/v1/adapters/{name}")).status_code == 404
        # What is wrong with the request is not looked at before.
        bad = await blue.post(f"/v1/adapters/{name}/canary", content=b"{")
        assert bad.status_code == 404

    changed = await admin.put("/v1/adapters/mine", files=form(second))
    assert changed.status_code == 200
    assert registry.entry("mine").tenant == "red"
    assert (await red.delete("/v1/adapters/mine")).status_code == 200
    assert (await blue.get("/v1/adapters/mine/history")).status_code == 404
    assert (await upload(blue, second, "mine")).status_code == 201
    events = (await blue.get("/v1/adapters/mine/history")).json()["data"]
    assert [event["action"] for event in events] == ["point"]


async def test_a_hidden_version_cannot_be_a_canary(
    tenant: Tenant, registry: Registry, write_adapter: Callable[..., Path]
) -> None:
    red, blue = tenant("red"), tenant("blue")
    await upload(red, write_adapter("first"), "secret")
    await upload(blue, write_adapter("second", seed=2), "mine")
    for version in (registry.entry("secret").digest, "f" * 64):
        for action in ("canary", "rollback"):
            body = {"version": version} | ({"weight": 0.5} if action == "canary" else {})
            refused = await blue.post(f"/v1/adapters/mine/{action}", json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (
                404,
                "unknown_version",
            )


async def test_a_merge_reads_what_its_tenant_sees(
    tenant: Tenant, write_adapter: Callable[..., Path]
) -> None:
    red, blue = tenant("red"), tenant("blue")
    await upload(red, write_adapter("first"), "one")
    await upload(red, write_adapter("second", seed=2), "two")
    sources = [{"adapter": "one", "weight": 0.5}, {"adapter": "two", "weight": 0.5}]
    body = {"name": "both", "sources": sources, "method": "linear"}
    refused = await blue.post("/v1/adapters/merge", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "unknown_adapter")


async def test_files_and_jobs_belong_to_tenants(tenant: Tenant, engine: Any) -> None:
    red, blue, admin = tenant("red"), tenant("blue"), tenant("", frozenset({Scope.ADMIN}))
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    line = json.dumps({"messages": turns}).encode()
    ids = []
    for client in (red, blue):
        answer = await client.post(
            "/v1/files", data={"purpose": "fine-tune"}, files={"file": ("x.jsonl", line)}
        )
        ids.append(answer.json()["id"])
    own, other = ids
    assert [f["id"] for f in (await red.get("/v1/files")).json()["data"]] == [own]
    assert {f["id"] for f in (await admin.get("/v1/files")).json()["data"]} == set(ids)
    for path in (f"/v1/files/{other}", f"/v1/files/{other}/content"):
        hidden, absent = await red.get(path), await red.get(path.replace(other, "file-0"))
        assert hidden.status_code == absent.status_code == 404
        assert hidden.text.replace(other, "file-0") == absent.text
    for cursor in (other, "file-0"):
        assert (await red.get("/v1/files", params={"after": cursor})).status_code == 400

    job = await red.post("/v1/fine_tuning/jobs", json={"model": "base", "training_file": other})
    assert (job.status_code, job.json()["error"]["param"]) == (400, "training_file")
    made = await red.post("/v1/fine_tuning/jobs", json={"model": "base", "training_file": own})
    assert made.status_code == 200, made.text
    assert (await blue.get("/v1/fine_tuning/jobs")).json()["data"] == []
    assert len((await red.get("/v1/fine_tuning/jobs")).json()["data"]) == 1
    for job_id in (made.json()["id"], "ftjob-0"):
        assert (await blue.post(f"/v1/fine_tuning/jobs/{job_id}/cancel")).status_code == 404
    await red.post(f"/v1/fine_tuning/jobs/{made.json()['id']}/cancel")


async def test_a_job_cannot_take_the_name_of_another_tenants_adapter(
    tenant: Tenant, write_adapter: Callable[..., Path]
) -> None:
    red, blue = tenant("red"), tenant("blue")
    await upload(red, write_adapter(), "mine")
    body = {"model": "base", "training_file": "file-0", "suffix": "mine"}
    refused = await blue.post("/v1/fine_tuning/jobs", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "adapter_conflict")


async def answered(client: httpx.AsyncClient, name: str, user: str) -> str:
    """The id of an answer to a user of the client's tenant."""
    asked = {"messages": [{"role": "user", "content": f"asked by {user}"}], "user": user}
    answer = await client.post("/v1/chat/completions", json={"model": name, **asked})
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


async def test_feedback_belongs_to_the_tenant_that_asked(
    tenant: Tenant, write_adapter: Callable[..., Path]
) -> None:
    red, blue, admin = tenant("red"), tenant("blue"), tenant("", frozenset({Scope.ADMIN}))
    await upload(admin, write_adapter(), "common")
    opted_in = {"feedback": True}
    assert (await red.put("/v1/adapters/common/learning", json=opted_in)).status_code == 403
    assert (await admin.put("/v1/adapters/common/learning", json=opted_in)).status_code == 200
    tenants = {"red": red, "blue": blue}
    ids = {who: await answered(client, "common", "ann") for who, client in tenants.items()}

    def said(completion_id: str) -> dict[str, str]:
        return {"completion_id": completion_id, "edit": "mended"}

    hidden = await blue.post("/v1/feedback", json=said(ids["red"]))
    absent = await blue.post("/v1/feedback", json=said("chatcmpl-0"))
    assert hidden.status_code == absent.status_code == 404
    assert hidden.text.replace(ids["red"], "chatcmpl-0") == absent.text
    made = {
        who: (await client.post("/v1/feedback", json=said(ids[who]))).json()["id"]
        for who, client in tenants.items()
    }
    for client, who in ((red, ["red"]), (blue, ["blue"]), (admin, ["blue", "red"])):
        listed = (await client.get("/v1/feedback", params={"adapter": "common"})).json()["data"]
        assert [one["id"] for one in listed] == [made[name] for name in who]
        exported = await client.get("/v1/feedback/export", params={"adapter": "common"})
        rows = [json.loads(line)["id"] for line in exported.text.splitlines()]
        assert sorted(rows) == sorted(made[name] for name in who)
        shown = (await client.get("/v1/adapters/common/learning")).json()
        assert (shown["kept_completions"], shown["kept_feedback"]) == (len(who), len(who))
    for cursor in (made["red"], "fb-0"):
        lost = await blue.get("/v1/feedback", params={"after": cursor})
        assert (lost.status_code, lost.json()["error"]["param"]) == (400, "after")

    for feedback in (made["red"], "fb-0"):
        assert (await blue.delete(f"/v1/feedback/{feedback}")).status_code == 404
    gone = (await blue.delete("/v1/feedback", params={"user": "ann"})).json()
    assert (gone["deleted_completions"], gone["deleted_feedback"]) == (1, 1)
    assert len((await red.get("/v1/feedback")).json()["data"]) == 1
    assert (await red.delete(f"/v1/feedback/{made['red']}")).status_code == 200
    assert (await admin.get("/v1/feedback")).json()["data"] == []


async def test_feedback_and_files_of_a_hidden_adapter_are_those_of_none(
    tenant: Tenant, service: Service, write_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    red, blue, admin = tenant("red"), tenant("blue"), tenant("", frozenset({Scope.ADMIN}))
    await upload(red, write_adapter(), "mine")
    for name in ("mine", "none"):
        exported = await blue.get("/v1/feedback/export", params={"adapter": name})
        assert (exported.status_code, exported.json()["error"]["code"]) == (404, "unknown_adapter")
        listed = await blue.get("/v1/feedback", params={"adapter": name})
        assert (listed.status_code, listed.json()["data"]) == (200, [])
        assert (await blue.get(f"/v1/adapters/{name}/learning")).status_code == 404
    staged = tmp_path / "rows"
    staged.write_bytes(b"{}\n")
    own = service.files.add(
        *(staged,), filename="x", purpose="fine-tune", status="processed", is_internal=True
    )
    for client in (red, admin):
        for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
            answer = await client.request(method, f"/v1/files/{own.id}{path}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "file_not_found")
    job = {"model": "mine", "training_file": own.id}
    assert (await red.post("/v1/fine_tuning/jobs", json=job)).json()["error"]["param"] == (
        "training_file"
    )


async def test_a_policy_names_files_that_its_author_sees(
    tenant: Tenant, write_adapter: Callable[..., Path]
) -> None:
    red, blue = tenant("red"), tenant("blue")
    await upload(red, write_adapter(), "mine")
    line = json.dumps({"prompt": "a", "completion": "b"}).encode()
    ids = []
    for client in (red, blue):
        answer = await client.post(
            "/v1/files", data={"purpose": "fine-tune"}, files={"file": ("x.jsonl", line)}
        )
        ids.append(answer.json()["id"])
    own, other = ids
    policies = {
        "validation_file": lambda file: {"validation_file": file},
        "replay.file": lambda file: {"replay": {"file": file}},
        "gate.recent": lambda file: {"gate": {"recent": file}},
    }
    for place, policy in policies.items():
        refused = [
            await red.put("/v1/adapters/mine/learning", json=policy(file))
            for file in (other, "file-0")
        ]
        assert {answer.status_code for answer in refused} == {400}
        assert refused[0].text.replace(other, "file-0") == refused[1].text
        assert refused[0].json()["error"]["param"] == place
        good = await red.put("/v1/adapters/mine/learning", json=policy(own))
        assert good.status_code == 200, good.text


async def test_idempotency_keys_of_tenants_do_not_meet(
    tenant: Tenant, write_adapter: Callable[..., Path]
) -> None:
    red, blue = tenant("red"), tenant("blue")
    same = {"idempotency-key": "1"}
    first, second = write_adapter("first"), write_adapter("second", seed=2)
    made = await red.post("/v1/adapters", data={"name": "a"}, files=form(first), headers=same)
    other = await blue.post("/v1/adapters", data={"name": "b"}, files=form(second), headers=same)
    assert (made.status_code, other.status_code) == (201, 201)
    assert "idempotent-replayed" not in other.headers


def test_tenants_share_no_prefix_cache() -> None:
    shares = (AdapterShare("a" * 64),)
    keys = {root_key(shares, salt, who) for salt in ("", "x") for who in ("", "red", "blue")}
    assert len(keys) == 6
    assert root_key(shares, "\2red\0x") != root_key(shares, "x", "red")
    assert root_key(shares, "red\0x") != root_key(shares, "x", "red")


async def test_metrics_name_no_adapter_of_another_tenant(
    tenant: Tenant, write_adapter: Callable[..., Path]
) -> None:
    red, blue, operator = tenant("red"), tenant("blue"), tenant("", frozenset({Scope.METRICS}))
    assert (await upload(red, write_adapter(), "red-one")).status_code == 201
    ask = {"model": "red-one", "prompt": "hi", "max_tokens": 1}
    assert (await red.post("/v1/completions", json=ask)).status_code == 200
    for path in ("/metrics", "/metrics/adapters"):
        pages = {client: (await client.get(path)).text for client in (red, blue, operator)}
        assert "red-one" in pages[red]
        assert "red-one" not in pages[blue]
        assert pages[operator].count("red-one") == pages[red].count("red-one")
        assert pages[blue].count("# TYPE") == pages[operator].count("# TYPE") > 5


async def test_routers_without_a_key_read_the_lean_page_where_it_is_open(
    tenant: Tenant, service: Service
) -> None:
    key = tenant("red").headers["authorization"]
    for is_open, status in ((False, 401), (True, 200)):
        app = create_app(replace(service, open_metrics=is_open))
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as router:
            assert (await router.get("/metrics")).status_code == status
            assert (await router.get("/metrics/adapters")).status_code == 401
            assert (await router.get("/v1/models")).status_code == 401
            mine = await router.get("/metrics/adapters", headers={"authorization": key})
            assert mine.status_code == 200
