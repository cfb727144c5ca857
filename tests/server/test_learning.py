"""The learning policy over HTTP, and what is counted of requests while a canary runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from multiflora.adapters.folder import AdapterFolder
from multiflora.adapters.registry import Registry
from multiflora.adapters.version import Version
from multiflora.engine.errors import RequestFailed
from multiflora.engine.request import GenerationRequest
from multiflora.engine.training.learning.learner import Learner
from multiflora.engine.training.learning.traffic import Traffic

from .fake_engine import FakeEngine

pytestmark = pytest.mark.anyio
POET = "/v1/adapters/poet/learning"


@pytest.fixture
def registry(stored_registry: Registry) -> Registry:
    return stored_registry


@pytest.fixture
def digests(registry: Registry, write_adapter: Callable[..., Path]) -> tuple[str, str]:
    """``poet`` with a live version, and another one."""
    assert registry.store is not None
    live, other = "a" * 64, "b" * 64
    for digest in (live, other):
        registry.store.put_copy(digest, AdapterFolder(write_adapter()))
    registry.publish("poet", live)
    registry.publish_version(Version(other))
    return live, other


@pytest.fixture
def watched(registry: Registry, learner: Learner, digests: tuple[str, str]) -> tuple[str, str]:
    live, canary = digests
    registry.set_canary("poet", canary, 0.5)
    learner.windows.open("poet", live=live, canary=canary, traffic=Traffic())
    return digests


async def test_a_policy_is_set_and_shown(
    client: httpx.AsyncClient, digests: tuple[str, str]
) -> None:
    assert (await client.get(POET)).json()["enabled"] is False
    given = {
        "enabled": True,
        "method": "dpo",
        "min_rows": 5,
        "canary_weight": 0.2,
        "canary": {"min_requests": 7},
        "gate": {"num_prompts": 4},
    }
    shown = (await client.put(POET, json=given)).json()
    assert {name: shown[name] for name in given} == {
        **given,
        "canary": {**shown["canary"], "min_requests": 7},
    }
    assert shown == (await client.get(POET)).json()
    # What is left out has its default again.
    assert (await client.put(POET, json={"enabled": True})).json()["min_rows"] == 64


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"enabeld": True}, "enabeld", "did you mean 'enabled'"),
        ({"min_rows": 0}, "min_rows", "1 to 1000000"),
        ({"method": "magic"}, "method", "supervised"),
        ({"canary_weight": 1.0}, "canary_weight", "both must be asked"),
        ({"canary": {"min_request": 3}}, "canary.min_request", "Extra inputs"),
        ({"canary": {"confidence": 1.0}}, "confidence", "below 1"),
        ({"training": {"gate": {}}}, "training.gate", "said by gate"),
        ({"enabled": True, "training": {"lora": {"rnk": 1}}}, "training.lora.rnk", "'rank'"),
        ({"validation_file": "file-0"}, "validation_file", "no file has the id"),
    ],
)
async def test_a_wrong_policy_is_refused_by_name(
    client: httpx.AsyncClient,
    digests: tuple[str, str],
    body: dict[str, Any],
    param: str,
    message: str,
) -> None:
    answer = await client.put(POET, json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", POET),
        ("PUT", POET),
        ("GET", f"{POET}/runs"),
        ("POST", "/v1/adapters/poet/learn"),
    ],
)
async def test_an_adapter_that_is_not_there_cannot_learn(
    client: httpx.AsyncClient, method: str, path: str
) -> None:
    answer = await client.request(method, path, json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_adapter")


async def test_an_adapter_that_does_not_learn_says_how_it_would(
    client: httpx.AsyncClient, digests: tuple[str, str]
) -> None:
    answer = await client.post("/v1/adapters/poet/learn")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "learning_off")
    assert "enabled=true" in answer.json()["error"]["message"]
    runs = (await client.get(f"{POET}/runs")).json()
    assert (runs["data"], runs["has_more"]) == ([], False)
    lost = await client.get(f"{POET}/runs", params={"after": "learn-0"})
    assert (lost.status_code, lost.json()["error"]["param"]) == (400, "after")


async def test_requests_of_both_versions_are_counted_while_a_canary_is_watched(
    chat: Callable[..., Any], learner: Learner, watched: tuple[str, str], engine: FakeEngine
) -> None:
    for number in range(6):
        await chat(model="poet", stream=number % 2 == 0)
    traffic = learner.windows.traffic("poet")
    assert (traffic.live.num_requests, traffic.canary.num_requests) == (3, 3)
    assert traffic.live.lengths.num == traffic.canary.first_token.num == 3
    assert traffic.live.inter_token.num == 3
    tokens = len(engine.tokenizer.encode("hello world"))
    assert traffic.live.lengths.typical == pytest.approx(tokens + 1)


async def test_failures_of_a_version_count_against_it_and_mistakes_of_clients_do_not(
    chat: Callable[..., Any], learner: Learner, watched: tuple[str, str], engine: FakeEngine
) -> None:
    _, canary = watched

    def fail(request: GenerationRequest) -> Any:
        if request.adapters[0].digest == canary:
            return [RequestFailed("numbers that are none")]
        return engine.say(request)

    engine.script = fail
    for _ in range(6):
        await chat(model="poet")
    await chat(model="poet", max_tokens=10_000)
    traffic = learner.windows.traffic("poet")
    assert (traffic.canary.num_errors, traffic.canary.num_requests) == (3, 3)
    assert (traffic.live.num_errors, traffic.live.num_requests) == (0, 3)


async def test_the_history_shows_the_evidence(
    client: httpx.AsyncClient, registry: Registry, watched: tuple[str, str]
) -> None:
    registry.promote("poet", if_canary=watched[1], evidence={"decision": "promote"})
    events = (await client.get("/v1/adapters/poet/history")).json()["data"]
    assert events[0]["evidence"] == {"decision": "promote"}
    assert events[1]["evidence"] is None
