"""Probes, version, metrics, and answers outside the routes."""

import json
import re
from dataclasses import replace

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from multiflora.engine.client import EngineState
from multiflora.server.app import create_app
from multiflora.server.metrics import Metrics

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("path", ["/live", "/ready", "/health", "/version", "/metrics"])
async def test_a_ready_server_answers_probes(client, path):
    assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize("state", [EngineState.STARTING, EngineState.RESTARTING])
async def test_without_an_engine_it_lives_but_is_not_ready(client, complete, engine, state):
    engine.state = state

    assert (await client.get("/live")).status_code == 200
    for path in ("/ready", "/health"):
        response = await client.get(path)
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "loading"
        assert int(response.headers["retry-after"]) > 0


async def test_requests_before_the_first_start_are_503(complete, engine):
    engine.state = EngineState.STARTING

    assert (await complete()).status_code == 503


async def test_a_draining_server_takes_no_requests(client, complete, service):
    service.drain.begin()

    for response in (await client.get("/ready"), await complete()):
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "draining"
        assert "retry-after" in response.headers
    assert (await client.get("/live")).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/models/", 404, "model_not_found"),
    ],
)
async def test_unknown_routes_use_the_same_envelope(client, method, path, status, code):
    response = await client.request(method, path)

    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.json()["error"]["code"] == code


async def test_request_ids_are_echoed_if_harmless_and_made_otherwise(client):
    echoed = await client.get("/live", headers={"x-request-id": "trace-1.a"})
    refused = await client.get("/live", headers={"x-request-id": "a b<script>"})
    made = await client.get("/nothing")

    assert echoed.headers["x-request-id"] == "trace-1.a"
    assert len(refused.headers["x-request-id"]) == 32
    assert len(made.headers["x-request-id"]) == 32


async def test_metrics_count_requests_by_known_names_only(client, complete):
    await complete(model="json")
    await complete(model="nobody")
    await complete(prompt=[10**6])

    families = {
        family.name: family
        for family in text_string_to_metric_families((await client.get("/metrics")).text)
    }

    counted = {
        (sample.labels["adapter"], sample.labels["outcome"]): sample.value
        for sample in families["multiflora_requests"].samples
        if sample.name.endswith("_total")
    }
    assert counted == {("json", "ok"): 1, ("base", "invalid_token"): 1}
    assert families["multiflora_engine_steps"].samples[0].value == 7
    assert families["multiflora_engine_up"].samples[0].value == 1
    assert families["multiflora_time_to_first_token_seconds"].samples
    assert all(name.startswith(("multiflora_", "vllm:")) for name in families)


async def test_a_page_is_kept_unless_a_new_one_is_asked_for(service):
    page = Metrics(service.client, fresh_seconds=60)
    app = create_app(replace(service, metrics=page))
    new = {"cache-control": "no-cache"}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://server"
    ) as client:
        before = (await client.get("/metrics")).text
        with page.request("base") as record:
            record.succeed()
        assert (await client.get("/metrics")).text == before
        counted = 'multiflora_requests_total{adapter="base",outcome="ok"} 1.0'
        assert counted in (await client.get("/metrics", headers=new)).text
        assert counted in (await client.get("/metrics")).text


async def test_metrics_outlive_the_engine(client, engine):
    engine.state = EngineState.RESTARTING

    assert "multiflora_engine_up 0.0" in (await client.get("/metrics")).text


async def test_openapi_names_every_route(client):
    document = (await client.get("/openapi.json")).json()

    assert {"/v1/completions", "/v1/chat/completions", "/v1/models"} <= set(document["paths"])
    schemas = document["components"]["schemas"]
    assert {"model", "prompt"} <= set(schemas["CompletionBody"]["properties"])
    references = set(re.findall(r'"\$ref": ?"([^"]+)"', json.dumps(document)))
    assert references <= {f"#/components/schemas/{name}" for name in schemas}
