"""/openapi.json against the routes, their rules and what they answer."""

import re
from typing import Any

import httpx
import jsonschema
import pytest
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from multiflora.server.access.rule import RULES
from multiflora.server.api_answer import ANSWERS
from multiflora.server.app import create_app
from multiflora.server.service import Service

pytestmark = pytest.mark.anyio

MESSAGES = [{"role": "user", "content": "hi"}]
CALLS: list[tuple[str, str, Any, int]] = [
    ("POST", "/v1/chat/completions", {"model": "json", "messages": MESSAGES}, 200),
    (
        "POST",
        "/v1/chat/completions",
        {"model": "base", "messages": MESSAGES, "logprobs": True, "top_logprobs": 2},
        200,
    ),
    ("POST", "/v1/chat/completions", {"model": "base", "messages": MESSAGES, "n": 99}, 400),
    ("POST", "/v1/completions", {"model": "base", "prompt": "x", "echo": True, "logprobs": 1}, 200),
    ("POST", "/v1/completions", {"model": "nobody", "prompt": "x"}, 404),
    ("POST", "/v1/completions", b"{", 400),
    ("POST", "/v1/responses", {"model": "base", "input": "hi"}, 200),
    ("POST", "/v1/embeddings", {"model": "base", "input": []}, 400),
    ("POST", "/tokenize", {"prompt": "hi", "return_token_strs": True}, 200),
    ("POST", "/detokenize", {"tokens": [5]}, 200),
    ("GET", "/tokenizer_info", None, 200),
    ("GET", "/v1/models", None, 200),
    ("GET", "/v1/models/json", None, 200),
    ("GET", "/v1/adapters/nobody", None, 404),
    ("GET", "/v1/adapters/json/history", None, 200),
    ("GET", "/v1/adapters/json/learning", None, 200),
    ("POST", "/v1/adapters/json/pin", None, 200),
    ("POST", "/v1/adapters/json/promote", None, 400),
    ("GET", "/v1/files", None, 200),
    ("GET", "/v1/files?limit=x", None, 400),
    ("GET", "/v1/batches", None, 200),
    ("GET", "/v1/fine_tuning/jobs", None, 200),
    ("GET", "/v1/fine_tuning/jobs/none", None, 404),
    ("GET", "/v1/feedback", None, 200),
    ("DELETE", "/v1/feedback?adapter=json", None, 200),
    ("POST", "/v1/load_lora_adapter", {"lora_name": "x"}, 400),
    ("POST", "/load_lora_adapter", {"lora_name": "x"}, 400),
    ("GET", "/v1/keys", None, 200),
    ("GET", "/ready", None, 200),
    ("GET", "/version", None, 200),
    ("DELETE", "/v1/models/json", None, 200),
    # The first key closes the server.
    ("POST", "/v1/keys", {"name": "x", "scopes": ["admin"]}, 201),
    ("GET", "/v1/keys", None, 401),
]


@pytest.fixture
def document(service: Service) -> dict[str, Any]:
    return create_app(service).openapi()


def test_every_route_says_its_scope_and_its_answer(document: dict[str, Any]) -> None:
    shown = {
        f"{method.upper()} {path}": operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    rules = {key.replace(":path", ""): rule for key, rule in RULES.items()}
    del rules["GET /openapi.json"]

    assert shown.keys() <= rules.keys()
    assert set(ANSWERS) <= shown.keys()
    for key, operation in shown.items():
        scope = rules[key].scope
        assert operation["security"] == ([] if scope is None else [{"api_key": [scope.value]}])
        assert {"4XX", "5XX"} < operation["responses"].keys()


async def test_answers_are_as_documented(
    client: httpx.AsyncClient, document: dict[str, Any]
) -> None:
    for method, path, body, status in CALLS:
        is_raw = isinstance(body, bytes | None)
        content: dict[str, Any] = {"content" if is_raw else "json": body}

        answer = await client.request(method, path, **content)

        assert answer.status_code == status, (method, path, answer.text)
        responses = _operation(document, method, path)["responses"]
        documented = responses.get(str(status)) or responses[f"{status // 100}XX"]
        media_type = answer.headers["content-type"].partition(";")[0]
        _check(document, documented["content"][media_type]["schema"], answer.json())


def _operation(document: dict[str, Any], method: str, path: str) -> dict[str, Any]:
    """By an exact path, otherwise by one with parameters."""
    path = path.partition("?")[0]
    for pattern in sorted(document["paths"], key=lambda pattern: "{" in pattern):
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", pattern), path):
            return document["paths"][pattern][method.lower()]
    raise AssertionError(path)


def _check(document: dict[str, Any], schema: Any, value: Any) -> None:
    whole = Resource.from_contents(document, default_specification=DRAFT202012)
    registry: Any = Registry().with_resource("urn:api", whole)
    absolute = {"$ref": f"urn:api{schema['$ref']}"} if "$ref" in schema else _absolute(schema)
    jsonschema.Draft202012Validator(absolute, registry=registry).validate(value)


def _absolute(schema: dict[str, Any]) -> dict[str, Any]:
    parts = schema.get("anyOf")
    return schema if parts is None else {"anyOf": [{"$ref": f"urn:api{p['$ref']}"} for p in parts]}
