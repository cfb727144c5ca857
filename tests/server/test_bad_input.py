"""Every bad request gets one clear error, and the server keeps serving."""

import json
from dataclasses import replace

import httpx
import pytest

from multiflora.engine.errors import EngineOverloaded
from multiflora.server.app import create_app
from multiflora.server.limits import Limits

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
async def still_serves(complete, engine):
    yield
    engine.script = None
    assert (await complete()).status_code == 200


async def post(client, content, path="/v1/completions"):
    response = await client.post(path, content=content)
    return response, response.json()["error"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"model": "base",}',
        b"[1]",
        b'"x"',
        b"\xff\xfe",
        b'{"a": "\\ud800"}',
        b"[" * 9999,
    ],
    ids=["empty", "cut", "comma", "list", "string", "not_utf8", "surrogate", "deep"],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_malformed_json(client, content, path):
    response, error = await post(client, content, path)

    assert response.status_code == 400
    assert error["code"] == "invalid_json"
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_numbers_that_are_none(client, number):
    content = f'{{"model": "base", "prompt": "x", "temperature": {number}}}'

    response, error = await post(client, content.encode())

    assert response.status_code == 400
    assert error["code"] in ("invalid_json", "invalid_request")


async def test_malformed_json_names_the_position(client):
    _, error = await post(client, b'{"model": NaN}')

    assert "line 1 column 11" in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": 3}, "model"),
        ({"model": None}, "model"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"n": 0}, "n"),
        ({"n": 1_000_000}, "n"),
        ({"n": 1.5}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"stop": [1]}, "stop.0"),
        ({"stop": ""}, "stop.0"),
        ({"stop": "x" * 257}, "stop.0"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
        ({"stop_token_ids": [10**6]}, "stop_token_ids"),
        ({"echo": 1}, "echo"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x.[key]"),
        ({"logit_bias": {"-1": 1}}, "logit_bias.-1.[key]"),
        ({"logit_bias": {"100000": 1}}, "logit_bias"),
        ({"logit_bias": {str(k): 1 for k in range(1025)}}, "logit_bias"),
        ({"allowed_token_ids": [10**6]}, "allowed_token_ids"),
        ({"bad_words": [""]}, "bad_words.0"),
        ({"priority": -1}, "priority"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"suffix": "end"}, "suffix"),
        ({"store": True}, "store"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_wrong_values_are_refused_by_name(complete, fields, param):
    response = await complete(**fields)

    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    "prompt",
    ["", [], [[]], ["a", ""], [[1], []], None, 5, {"a": 1}, [1, "a"], ["a", 1], [1.5], [True]],
    ids=repr,
)
async def test_prompts_of_no_or_of_wrong_form(complete, prompt):
    response = await complete(prompt=prompt)

    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"


@pytest.mark.parametrize("token", [-1, 10**6, 2**62], ids=str)
async def test_token_ids_out_of_range(complete, engine, token):
    error = (await complete(prompt=[5, token])).json()["error"]

    assert error["code"] == "invalid_token"
    assert str(token) in error["message"]
    assert str(engine.info.vocab_size) in error["message"]


async def test_more_sequences_than_fit(complete):
    assert (await complete(prompt=["x"] * 100, n=16)).status_code == 400


async def test_unknown_fields_are_named_in_a_header(complete, chat, read_events):
    options = {"include_usage": True, "usage": 1}
    response = await complete(temprature=1, stream=True, stream_options=options)

    assert response.status_code == 200
    assert response.headers["x-ignored-fields"] == "temprature,stream_options.usage"
    message = {"role": "user", "content": "x", "colour": 1}
    answer = await chat(messages=[message])
    assert answer.headers["x-ignored-fields"] == "messages.0.colour"
    assert "x-ignored-fields" not in (await complete()).headers


async def test_a_strict_server_refuses_unknown_fields(service):
    limits = Limits(refuses_unknown_fields=True)
    transport = httpx.ASGITransport(app=create_app(replace(service, limits=limits)))
    plain = {"model": "base", "prompt": "x"}
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        for path, body, param in (
            ("/v1/completions", {**plain, "temprature": 1}, "temprature"),
            ("/v1/responses", {"model": "base", "input": "x", "colour": 1}, "colour"),
            ("/v1/embeddings", {"model": "base", "input": "x", "colour": 1}, "colour"),
            ("/tokenize", {**plain, "colour": 1}, "colour"),
            ("/v1/completions", {**plain, "stream_options": {"b": 1}}, "stream_options.b"),
        ):
            refused = await client.post(path, json=body)
            error = refused.json()["error"]
            assert (refused.status_code, error["code"]) == (400, "unknown_parameter")
            assert error["param"] == param
        assert (await client.post("/v1/completions", json=plain)).status_code == 200


async def test_the_number_of_choices_is_the_operators(service):
    body = {"model": "base", "prompt": "x"}
    for limits, most in ((Limits(), 16), (Limits(max_choices=128), 128)):
        transport = httpx.ASGITransport(app=create_app(replace(service, limits=limits)))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            for n in (most, most + 1):
                answer = await client.post("/v1/completions", json={**body, "n": n})
                assert answer.status_code == (200 if n == most else 400)
            assert answer.json()["error"]["param"] == "n"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_body_can_name_its_request(complete, engine, stream):
    named = await complete(request_id="job-7", stream=stream)
    assert named.headers["x-request-id"] == "job-7"
    engine.script = lambda request: [EngineOverloaded("full")]
    refused = await complete(request_id="job-8", stream=stream)
    assert (refused.status_code, refused.headers["x-request-id"]) == (429, "job-8")
    harmful = await complete(request_id="a b", stream=stream)
    assert (harmful.status_code, harmful.json()["error"]["param"]) == (400, "request_id")
    assert harmful.headers["x-request-id"] != "a b"


async def test_names_of_unknown_fields_cannot_break_the_header(complete):
    fields = {"a\r\nx-evil: 1": 1, "\u00fc" * 99: 2, **{f"k{number}": 1 for number in range(99)}}

    names = (await complete(**fields)).headers["x-ignored-fields"].split(",")

    assert names[:2] == ["a??x-evil??1", "?" * 64]
    assert len(names) == 32


async def test_a_prompt_of_ten_megabytes(complete):
    response = await complete(prompt="x" * 10_000_000)

    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"


async def test_a_body_of_unknown_length_is_cut_off(client):
    async def chunks():
        for _ in range(20):
            yield b"x" * 500_000

    response = await client.post("/v1/completions", content=chunks())

    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"


async def test_headers_beyond_the_limit(client):
    response = await client.get("/v1/models", headers={"x-long": "x" * 70_000})

    assert response.status_code == 431
    assert response.json()["error"]["code"] == "request_too_large"


async def test_a_large_prompt_that_cannot_fit_is_refused_without_tokenizing(complete, engine):
    error = (await complete(prompt="x" * 1_000_000)).json()["error"]

    assert error["code"] == "context_length_exceeded"
    assert str(engine.info.max_model_len) in error["message"]


@pytest.mark.parametrize(
    ("fields", "numbers"),
    [({"prompt": [5] * 256}, ("256",)), ({"prompt": [5] * 200, "max_tokens": 57}, ("200", "57"))],
    ids=["prompt", "prompt_and_answer"],
)
async def test_too_long_for_the_context_names_the_numbers(complete, fields, numbers):
    response = await complete(**fields)

    error = response.json()["error"]
    assert response.status_code == 400
    assert error["code"] == "context_length_exceeded"
    assert all(number in error["message"] for number in numbers)


async def test_error_messages_stay_small(client):
    fields = {"model": "base", "prompt": [[["x" * 100] * 1000] * 20], "k" * 100_000: 1}

    response, error = await post(client, json.dumps(fields).encode())

    assert response.status_code == 400
    assert len(response.content) < 2000
    assert len(error["message"]) <= 1000


@pytest.mark.parametrize("name", ["nobody", "", "BASE", "json ", "../base", "x" * 5000], ids=str)
async def test_an_unknown_model_is_never_the_base(complete, engine, name):
    response = await complete(model=name)

    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert engine.requests == []


async def test_unexpected_errors_are_500_without_details(complete, engine, client, caplog):
    engine.script = lambda request: [ZeroDivisionError("secret")]

    response = await complete()

    engine.script = None
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text
    assert response.headers["x-request-id"] in caplog.text


@pytest.mark.parametrize("depth", [400, 900, 5000])
async def test_deeply_nested_data(client, depth):
    nested = "[" * depth + "]" * depth
    messages = '[{"role": "user", "content": "x"}]'
    content = f'{{"model": "base", "messages": {messages}, "documents": [{{"a": {nested}}}]}}'

    response = await client.post("/v1/chat/completions", content=content)

    assert response.status_code in (200, 400)
