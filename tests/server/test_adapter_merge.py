"""``POST /v1/adapters/merge``: what is published, what is answered, and what is refused."""

import asyncio
import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from safetensors.numpy import load_file, save_file

from multiflora.adapters.folder import WEIGHTS_NAME
from multiflora.adapters.inspection import GateLimits
from multiflora.adapters.merging import child
from multiflora.adapters.registry import Registry
from multiflora.adapters.store import AdapterStore
from multiflora.server.base_match import BaseMatch
from multiflora.server.merging import Merger
from multiflora.server.publishing import Publisher, Terms
from multiflora.server.service import Service

pytestmark = pytest.mark.anyio
O_PROJ = "base_model.model.model.layers.0.self_attn.o_proj"
HANGS = "import time; time.sleep(60)"
FULL = f'print(\'{{"type": "Failed", "number": {errno.ENOSPC}, "reason": "No space left"}}\')'


@pytest.fixture
def registry(stored_registry: Registry) -> Registry:
    return stored_registry


@pytest.fixture
def publisher(stored_publisher: Publisher) -> Publisher:
    return stored_publisher


@pytest.fixture
def parents(
    registry: Registry, publisher: Publisher, write_adapter: Callable[..., Path]
) -> dict[str, str]:
    """Published parents by name, with their digests."""
    found = {}
    for seed, name in enumerate(("formal", "pirate")):
        folder = write_adapter(name, seed=seed)
        found[name] = publisher.publish(folder, name, source="test", terms=Terms()).digest
    return found


@pytest.fixture
def merge(client: httpx.AsyncClient, parents: dict[str, str]) -> Callable[..., Any]:
    """POST a merge of both parents; fields add to it or replace."""

    async def post(headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        sources = [{"adapter": name} for name in parents]
        body = {"name": "mixed", "sources": sources, **fields}
        return await client.post("/v1/adapters/merge", json=body, headers=headers)

    return post


def delta(registry: Registry, digest: str) -> Any:
    assert registry.store is not None
    folder = registry.store.open(digest)
    tensors = load_file(folder.path / WEIGHTS_NAME)
    scale = folder.config["lora_alpha"] / folder.config["r"]
    return scale * tensors[f"{O_PROJ}.lora_B.weight"] @ tensors[f"{O_PROJ}.lora_A.weight"]


async def test_a_merge_is_published_with_its_parents_and_report(
    merge: Callable[..., Any],
    client: httpx.AsyncClient,
    registry: Registry,
    parents: dict[str, str],
) -> None:
    sources = [{"adapter": "formal", "weight": 0.7}, {"adapter": "pirate", "weight": -0.3}]
    answer = await merge(sources=sources)
    assert answer.status_code == 201, answer.text
    shown = answer.json()
    assert (shown["name"], shown["rank"]) == ("mixed", 4)
    assert answer.headers["etag"] == f'"{shown["version"]}"'
    expected = 0.7 * delta(registry, parents["formal"]) - 0.3 * delta(registry, parents["pirate"])
    assert abs(delta(registry, shown["version"]) - expected).max() < 1e-5
    assert [parent["name"] for parent in shown["report"]["parents"]] == ["formal", "pirate"]
    assert shown["report"]["modules"][0]["pairs"][0]["cosine"] != 0
    (version,) = (await client.get("/v1/adapters/mixed/versions")).json()["data"]
    assert version["parents"] == list(parents.values())
    assert version["source"] == "merge"
    assert version["metrics"]["merge"]["method"] == "linear"
    assert version["metrics"]["merge"]["modules"][0]["coefficients"] == [0.7, -0.3]


async def test_all_settings_arrive(merge: Callable[..., Any]) -> None:
    answer = await merge(
        method="slerp",
        t=[0, 0.5],
        filters=[{"match": "o_proj", "t": 0.25}],
        rank=3,
        dtype="bfloat16",
        on_antiparallel="lerp",
    )
    assert answer.status_code == 201, answer.text
    report = answer.json()["report"]
    assert report["settings"]["t"] == [0, 0.5]
    assert report["settings"]["filters"] == [{"match": "o_proj", "t": [0.25]}]
    assert (report["rank"], report["dtype"], answer.json()["rank"]) == ("3", "bfloat16", 3)
    answer = await merge(name="random", method="dare_ties_knots", density=0.4, seed=5)
    assert answer.json()["report"]["settings"] == {"density": 0.4, "seed": 5}


async def test_an_older_version_can_be_a_parent(
    merge: Callable[..., Any],
    registry: Registry,
    publisher: Publisher,
    parents: dict[str, str],
    write_adapter: Callable[..., Path],
) -> None:
    publisher.publish(write_adapter("newer", seed=9), "pirate", source="test", terms=Terms())
    older = {"adapter": "pirate", "version": parents["pirate"], "weight": 1.0}
    answer = await merge(sources=[older])
    expected = delta(registry, parents["pirate"])
    assert abs(delta(registry, answer.json()["version"]) - expected).max() < 1e-5


async def test_a_name_that_exists_is_replaced_on_request_only(merge: Callable[..., Any]) -> None:
    first = (await merge()).json()["version"]
    answer = await merge(method="slerp")
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "adapter_conflict"
    assert "replace" in answer.json()["error"]["message"]
    answer = await merge(method="slerp", replace=True, headers={"if-match": '"' + "0" * 64 + '"'})
    assert answer.status_code == 412
    answer = await merge(method="slerp", replace=True, headers={"if-match": f'"{first}"'})
    assert answer.status_code == 200, answer.text
    assert set(answer.json()["versions"]) == {first, answer.json()["version"]}
    answer = await merge(name="new", headers={"if-match": f'"{first}"'})
    assert answer.json()["error"]["param"] == "if-match"


async def test_a_repeated_request_is_answered_as_before(
    merge: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = {"idempotency-key": "one"}
    first = await merge(headers=key)
    monkeypatch.setattr(child, "PROGRAM", "raise SystemExit(1)")
    again = await merge(headers=key)
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["idempotent-replayed"] == "true"
    assert (await merge(headers=key, method="slerp")).status_code == 409


async def test_a_merge_in_background_is_a_job(
    merge: Callable[..., Any], client: httpx.AsyncClient
) -> None:
    answer = await merge(background=True)
    assert answer.status_code == 202
    job = answer.json()
    assert (job["object"], job["adapter"], job["error"]) == ("adapter.merge", None, None)
    shown = await ended(client, job["id"])
    assert (shown["status"], shown["progress"]) == ("succeeded", 1)
    assert shown["adapter"]["name"] == "mixed"
    assert shown["adapter"]["report"]["method"] == "linear"
    assert (await client.get("/v1/adapters/mixed")).status_code == 200
    answer = await client.post(f"/v1/adapters/merge/{job['id']}/cancel")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "job_over")


async def test_a_job_that_fails_says_why(
    merge: Callable[..., Any], client: httpx.AsyncClient, registry: Registry
) -> None:
    settings = {"method": "slerp", "filters": [{"match": "nowhere", "t": 0.1}]}
    job = (await merge(background=True, **settings)).json()
    shown = await ended(client, job["id"])
    assert shown["status"] == "failed"
    assert shown["error"]["code"] == "invalid_merge"
    assert "fits no module" in shown["error"]["message"]
    assert "mixed" not in {entry.name for entry in registry.entries()}


async def ended(client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while True:
            shown = (await client.get(f"/v1/adapters/merge/{job_id}")).json()
            if shown["status"] in ("succeeded", "failed", "cancelled"):
                return shown
            await asyncio.sleep(0.05)


async def test_an_unknown_job_is_not_found(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/adapters/merge/merge-0")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_job")


@pytest.mark.parametrize(
    ("fields", "status", "code", "reason"),
    [
        ({"sources": []}, 400, "invalid_request", "sources"),
        ({"method": "mix"}, 400, "invalid_request", "choose one of linear"),
        ({"t": 0.5}, 400, "invalid_request", "t means nothing to linear"),
        ({"method": "slerp", "t": 1.5}, 400, "invalid_request", "t is 1.5"),
        ({"method": "slerp", "t": []}, 400, "invalid_request", "t is empty"),
        ({"rank": 0}, 400, "invalid_request", "rank is 0"),
        ({"rank": "half"}, 400, "invalid_request", "energy:0.99"),
        ({"density": 0.5}, 400, "invalid_request", "density means nothing"),
        ({"wieght": 1}, 400, "unknown_parameter", "wieght"),
        ({"name": "merge"}, 400, "invalid_name", "reserved"),
        ({"name": "base"}, 400, "invalid_name", "reserved"),
        ({"name": "a/b"}, 400, "invalid_name", "letters"),
        ({"dtype": "int8"}, 400, "invalid_request", "dtype"),
        ({"sources": [{"adapter": "nobody"}]}, 404, "unknown_adapter", "nobody"),
        (
            {"sources": [{"adapter": "formal", "version": "0" * 64}]},
            404,
            "unknown_version",
            "does not keep",
        ),
        (
            {"sources": [{"adapter": "formal", "weight": 1}, {"adapter": "pirate"}]},
            400,
            "invalid_request",
            "all or none",
        ),
        (
            {"sources": [{"adapter": "formal", "weight": 0}]},
            400,
            "invalid_request",
            "all weights are 0",
        ),
        (
            {"sources": [{"adapter": n, "weight": w} for n, w in (("formal", 1), ("formal", -1))]},
            400,
            "empty_merge",
            "cancel",
        ),
    ],
)
async def test_bad_input_is_refused_with_the_reason(
    merge: Callable[..., Any],
    registry: Registry,
    fields: dict[str, Any],
    status: int,
    code: str,
    reason: str,
) -> None:
    answer = await merge(**fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code), error
    assert reason in error["message"]
    assert {entry.name for entry in registry.entries()} == {"formal", "pirate"}
    assert registry.leases_by_digest() == {}


async def test_a_version_of_another_base_is_no_parent(
    merge: Callable[..., Any], publisher: Publisher, parents: dict[str, str]
) -> None:
    publisher.match = BaseMatch("this", {parents["pirate"]: "other"})
    answer = await merge()
    assert answer.json()["error"]["code"] == "wrong_base"
    assert answer.json()["error"]["param"] == "sources.1.adapter"


async def test_an_adapter_that_is_more_than_lora_is_served_but_not_merged(
    client: httpx.AsyncClient,
    publisher: Publisher,
    parents: dict[str, str],
    write_adapter: Callable[..., Path],
) -> None:
    folder = write_adapter("biased", lora_bias=True)
    tensors = load_file(folder / WEIGHTS_NAME)
    tensors[f"{O_PROJ}.lora_B.bias"] = tensors[f"{O_PROJ}.lora_B.weight"][:, 0].copy()
    save_file(tensors, folder / WEIGHTS_NAME)
    publisher.publish(folder, "biased", source="test", terms=Terms())
    body = {"name": "mixed", "sources": [{"adapter": "formal"}, {"adapter": "biased"}]}
    error = (await client.post("/v1/adapters/merge", json=body)).json()["error"]
    assert error["code"] == "unsupported_feature"
    assert "biased: lora_bias is set" in error["message"]


@pytest.mark.parametrize(
    ("program", "status", "code"),
    [(FULL, 503, "disk_full"), ("import os; os.kill(os.getpid(), 9)", 400, "merge_died")],
)
async def test_a_full_disk_or_a_killed_process_leaves_nothing(
    merge: Callable[..., Any],
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    status: int,
    code: str,
) -> None:
    store = registry.store
    assert isinstance(store, AdapterStore)
    before = sorted(store.digests())
    monkeypatch.setattr(child, "PROGRAM", program)
    answer = await merge()
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert sorted(store.digests()) == before
    assert [path.name for path in store._root.iterdir() if path.name.startswith(".")] == []
    assert registry.leases_by_digest() == {}


async def test_parents_are_held_while_the_merge_runs(
    merge: Callable[..., Any],
    client: httpx.AsyncClient,
    registry: Registry,
    service: Service,
    parents: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(child, "PROGRAM", HANGS)
    others = set(psutil.Process().children())
    job = (await merge(background=True)).json()
    async with asyncio.timeout(20):
        while not set(psutil.Process().children()) - others:
            await asyncio.sleep(0.01)
    assert registry.leases_by_digest() == dict.fromkeys(parents.values(), 1)
    registry.delete("pirate")
    registry.collect()
    assert registry.store is not None
    assert parents["pirate"] in registry.store
    assert service.drain.num_running == 1
    service.merger.close()
    shown = await ended(client, job["id"])
    assert shown["error"]["code"] == "merge_died"
    assert registry.leases_by_digest() == {}
    assert service.drain.num_running == 0


async def test_a_cancelled_merge_publishes_nothing_and_the_next_one_runs(
    merge: Callable[..., Any],
    client: httpx.AsyncClient,
    service: Service,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(child, "PROGRAM", HANGS)
        running = (await merge(background=True)).json()
        waiting = (await merge(name="other", background=True)).json()
        for job in (running, waiting):
            answer = await client.post(f"/v1/adapters/merge/{job['id']}/cancel")
            assert answer.status_code == 200
        for job in (running, waiting):
            shown = await ended(client, job["id"])
            assert (shown["status"], shown["error"], shown["adapter"]) == ("cancelled", None, None)
    assert not {"mixed", "other"} & {entry.name for entry in registry.entries()}
    assert (registry.leases_by_digest(), service.drain.num_running) == ({}, 0)
    assert (await merge()).status_code == 201


async def test_a_closed_merger_takes_no_merge(
    merge: Callable[..., Any], service: Service, parents: dict[str, str]
) -> None:
    service.merger.close()
    refused = await merge()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")


async def test_no_more_than_a_few_merges_wait(
    merge: Callable[..., Any],
    client: httpx.AsyncClient,
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(child, "PROGRAM", HANGS)
    jobs = [(await merge(name=f"mixed-{i}", background=True)).json() for i in range(9)]
    shown = await ended(client, jobs[-1]["id"])
    assert shown["error"]["code"] == "queue_full"
    service.merger.close()
    for job in jobs:
        assert (await ended(client, job["id"]))["status"] == "failed"


async def test_the_rank_that_a_gate_allows_holds_for_merges_too(
    merge: Callable[..., Any], parents: dict[str, str], client: httpx.AsyncClient
) -> None:
    sources = [{"adapter": name, "weight": 1.0} for name in parents] * 2
    answer = await merge(sources=sources)
    # 8 ranks of an 8 x 8 matrix: what the sum holds, not the sum of what the parents hold.
    assert (answer.status_code, answer.json()["rank"]) == (201, 8)
    assert json.loads(answer.content)["report"]["modules"][0]["energy_kept"] == 1


async def test_too_many_ranks_for_the_server_are_refused_with_the_remedy(
    merge: Callable[..., Any],
    publisher: Publisher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publisher, "_limits", GateLimits(max_rank=3))
    error = (await merge()).json()["error"]
    assert (error["code"], "energy:0.99" in error["message"]) == ("rank_too_large", True)
    assert (await merge(rank=3)).status_code == 201


def test_a_merger_needs_limits_that_make_sense(registry: Registry, publisher: Publisher) -> None:
    with pytest.raises(ValueError, match="wall_seconds"):
        Merger(registry, publisher, limits=child.MergeLimits(wall_seconds=0))
