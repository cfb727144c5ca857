"""Work that goes on after its request: it asks as whoever ordered it, while the key is good."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from multiflora.server import batch_call, batch_store
from multiflora.server.access.api_key import KeyWish
from multiflora.server.access.caller import Scope
from multiflora.server.access.error import InvalidKey
from multiflora.server.batch_store import BatchStore
from multiflora.server.routes import datasets
from multiflora.server.service import Service

pytestmark = pytest.mark.anyio
Tenant = Callable[..., httpx.AsyncClient]


def publish(service: Service, name: str, *, tenant: str) -> None:
    digest = "a" * 64
    service.registry.publish_version(service.registry.version(digest))
    service.registry.point(name, digest, tenant=tenant)


@pytest.fixture
async def batches(service: Service) -> Any:
    """Answers batches, as a server does."""
    store = BatchStore(service.registry.database)
    service.batches.start(store, service.files, batch_call.caller(service))
    yield store
    await service.batches.stop()


async def make_batch(client: httpx.AsyncClient, *models: str) -> dict[str, Any]:
    lines = [
        {
            "custom_id": str(number),
            "method": "POST",
            "url": "/v1/completions",
            "body": {"model": model, "prompt": [5 + number]},
        }
        for number, model in enumerate(models)
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    file = await client.post("/v1/files", data={"purpose": "batch"}, files={"file": content})
    assert file.status_code == 200, file.text
    body = {
        "input_file_id": file.json()["id"],
        "endpoint": "/v1/completions",
        "completion_window": "24h",
    }
    made = await client.post("/v1/batches", json=body)
    assert made.status_code == 200, made.text
    return made.json()


async def end_of_batch(client: httpx.AsyncClient, batch: dict[str, Any]) -> dict[str, Any]:
    while "completed_at" not in batch:
        await asyncio.sleep(0.01)
        batch = (await client.get(f"/v1/batches/{batch['id']}")).json()
    return batch


async def results_of(client: httpx.AsyncClient, file_id: str) -> list[dict[str, Any]]:
    content = (await client.get(f"/v1/files/{file_id}/content")).text
    return [json.loads(line)["response"] for line in content.splitlines()]


async def test_a_batch_asks_as_its_maker_and_belongs_to_its_tenant(
    service: Service, tenant: Tenant, engine: Any, batches: BatchStore
) -> None:
    only = frozenset({Scope.INFERENCE})
    publish(service, "mine", tenant="red")
    red, blue, admin = tenant("red", only), tenant("blue", only), tenant("", frozenset(Scope))

    own = await end_of_batch(red, await make_batch(red, "mine", "base"))
    assert own["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
    assert {request.tenant for request in engine.requests} == {"red"}
    other = await end_of_batch(blue, await make_batch(blue, "mine"))
    (hidden,) = await results_of(blue, other["error_file_id"])
    assert (hidden["status_code"], hidden["body"]["error"]["code"]) == (404, "model_not_found")

    for client, ids in ((red, [own]), (blue, [other]), (admin, [other, own])):
        listed = (await client.get("/v1/batches")).json()["data"]
        assert [batch["id"] for batch in listed] == [batch["id"] for batch in ids]
    files = (await red.get("/v1/files")).json()["data"]
    assert {file["id"] for file in files} == {own["input_file_id"], own["output_file_id"]}
    for path in (f"/v1/batches/{own['id']}", f"/v1/files/{own['output_file_id']}/content"):
        assert (await blue.get(path)).status_code == 404
    after = await blue.get("/v1/batches", params={"after": own["id"]})
    assert (after.status_code, after.json()["error"]["param"]) == (400, "after")
    stolen = {"input_file_id": own["input_file_id"], "completion_window": "24h"}
    refused = await blue.post("/v1/batches", json={**stolen, "endpoint": "/v1/completions"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "file_not_found")


async def test_lines_fail_once_the_key_that_asked_is_revoked(
    service: Service, tenant: Tenant, engine: Any, batches: BatchStore
) -> None:
    red, other = tenant("red"), tenant("red")
    keys = service.keyring.registry

    def revoke_then_say(request: Any) -> Any:
        keys.revoke(next(iter(keys.keys())).id)
        return engine.say(request)

    engine.script = revoke_then_say
    engine_lines = ["base"] * 40
    batch = await end_of_batch(other, await make_batch(red, *engine_lines))

    # Those that run at once were asked before.
    assert batch["request_counts"]["failed"] >= len(engine_lines) - 16
    errors = await results_of(other, batch["error_file_id"])
    assert {one["body"]["error"]["code"] for one in errors} == {"invalid_api_key"}
    assert len(engine.requests) == batch["request_counts"]["completed"]


async def test_no_tenant_waits_for_the_batch_of_another(
    tenant: Tenant, engine: Any, batches: BatchStore
) -> None:
    red, blue = tenant("red"), tenant("blue")
    engine.script = lambda request: [60.0] if request.tenant == "red" else engine.say(request)
    stuck = await make_batch(red, "base")

    done = await end_of_batch(blue, await make_batch(blue, "base"))

    assert done["request_counts"]["completed"] == 1
    assert (await red.get(f"/v1/batches/{stuck['id']}")).json()["status"] == "in_progress"


async def test_what_asks_on_and_on_is_bounded_per_tenant(
    tenant: Tenant, engine: Any, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_store, "_MAX_OPEN", 1)
    monkeypatch.setattr(datasets, "_AT_ONCE", 1)
    engine.script = lambda request: [60.0]
    red, blue = tenant("red"), tenant("blue")
    batch = await make_batch(red, "base")
    again = {"input_file_id": batch["input_file_id"], "completion_window": "24h"}
    sample = {"model": "base", "prompts": [{"prompt": "a"}], "background": True}
    sample["grader"] = {"type": "regex", "pattern": "."}
    first = await red.post("/v1/datasets/sample", json=sample)
    assert first.status_code == 202, first.text
    for path, body in (
        ("/v1/batches", {**again, "endpoint": "/v1/completions"}),
        ("/v1/datasets/sample", sample),
    ):
        refused = await red.post(path, json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 10
    await make_batch(blue, "base")
    assert (await blue.post("/v1/datasets/sample", json=sample)).status_code == 202


async def test_an_inference_key_keeps_files_for_batches_alone(tenant: Tenant) -> None:
    client = tenant("red", frozenset({Scope.INFERENCE}))
    fine = await client.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": b"{}"})
    assert (fine.status_code, fine.json()["error"]["code"]) == (403, "insufficient_scope")
    trainer = tenant("red", frozenset({Scope.TRAINING}))
    made = await trainer.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": b"{}"})
    assert made.status_code == 200
    for params in ({}, {"purpose": "fine-tune"}):
        assert (await client.get("/v1/files", params=params)).json()["data"] == []


async def test_a_sampling_asks_as_whoever_ordered_it(
    service: Service, tenant: Tenant, engine: Any
) -> None:
    red, blue = tenant("red"), tenant("blue")
    publish(service, "mine", tenant="red")
    engine.text = "yes"
    body = {"model": "mine", "prompts": [{"prompt": "a"}], "n": 1}
    body["grader"] = {"type": "regex", "pattern": "yes"}
    report = await red.post("/v1/datasets/sample", json=body)
    assert report.status_code == 200, report.text
    assert {request.tenant for request in engine.requests} == {"red"}
    made = report.json()["file"]
    assert (await red.get(f"/v1/files/{made}")).status_code == 200
    assert (await blue.get(f"/v1/files/{made}")).status_code == 404

    judge = {"type": "judge", "model": "mine", "question": "?"}
    for changes in (
        {},
        {"model": "base", "grader": judge},
        {"model": "base", "prompts": None, "prompts_file": made},
    ):
        assert (await blue.post("/v1/datasets/sample", json={**body, **changes})).status_code == 404

    keys = service.keyring.registry

    def revoke_then_say(request: Any) -> Any:
        keys.revoke(next(iter(keys.keys())).id)
        return engine.say(request)

    engine.script = revoke_then_say
    refused = await red.post(
        "/v1/datasets/sample", json={**body, "prompts": [{"prompt": "a"}] * 90}
    )
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")


def test_keys_answer_for_what_they_asked_for_while_they_are_good(service: Service) -> None:
    keyring = service.keyring
    assert keyring.caller_of("").is_admin
    key, _ = keyring.registry.create(
        KeyWish(name="x", scopes=frozenset({Scope.INFERENCE}), tenant="red")
    )
    assert keyring.caller_of(key.id).tenant == "red"
    for gone in ("", "0" * 12):
        with pytest.raises(InvalidKey):
            keyring.caller_of(gone)
    keyring.registry.revoke(key.id)
    with pytest.raises(InvalidKey):
        keyring.caller_of(key.id)


async def test_a_job_is_judged_by_what_its_tenant_sees(service: Service, tenant: Tenant) -> None:
    publish(service, "mine", tenant="red")
    trainer = tenant("blue", frozenset({Scope.TRAINING}))
    file = await trainer.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": b"{}"})
    body = {"model": "base", "training_file": file.json()["id"]}
    answers = [
        await trainer.post(
            "/v1/fine_tuning/jobs", json={**body, "training": {"gate": {"judge": judge}}}
        )
        for judge in ("mine", "none")
    ]
    assert [answer.status_code for answer in answers] == [400, 400]
    assert answers[0].json()["error"]["param"] == "training.gate.judge"
    assert answers[0].text.replace("mine", "none") == answers[1].text
