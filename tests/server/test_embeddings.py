"""POST /v1/embeddings, by hand and with the typed client."""

import asyncio

import openai
import pytest

from multiflora.engine.request import AdapterShare, FinishReason
from multiflora.server.admission import AdmissionLimits

pytestmark = pytest.mark.anyio


@pytest.fixture
def embed(client):
    async def post(**fields):
        return await client.post("/v1/embeddings", json={"model": "base", "input": "hi", **fields})

    return post


async def test_vectors_have_length_one(embed, engine, tokenizer):
    answer = (await embed(model="json")).json()

    assert answer["data"] == [
        {"object": "embedding", "index": 0, "embedding": pytest.approx([0.6, 0.8])}
    ]
    count = len(tokenizer.encode("hi"))
    assert answer["usage"] == {"prompt_tokens": count, "total_tokens": count}
    assert engine.requests[0].adapters == (AdapterShare("a" * 64),)
    assert engine.requests[0].sampling.max_tokens == 0


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_the_typed_client_reads_both_encodings(url, engine, encoding):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        answer = await client.embeddings.create(model="base", input=["a", "b"])
        raw = await client.embeddings.create(model="base", input="a", encoding_format=encoding)

    assert [item.embedding for item in answer.data] == [pytest.approx([0.6, 0.8])] * 2
    assert isinstance(raw.data[0].embedding, str) == (encoding == "base64")


async def test_a_deadline_ends_the_work(client, engine):
    engine.script = lambda request: [30, *engine.say(request)]
    answer = await client.post(
        "/v1/embeddings",
        json={"model": "base", "input": ["a", "b"]},
        headers={"x-request-timeout-ms": "40"},
    )

    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert not engine.running


async def test_a_full_queue_is_429(embed, engine, service):
    service.admission.limits = AdmissionLimits(max_queued_requests=1)
    engine.script = lambda request: [0.2, *engine.say(request)]
    running = asyncio.create_task(embed())
    await asyncio.sleep(0.05)
    refused = await embed()

    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    assert (await running).status_code == 200


async def test_fewer_dimensions_are_a_unit_vector_again(embed):
    assert (await embed(dimensions=1)).json()["data"][0]["embedding"] == [1.0]
    assert (await embed(dimensions=3)).json()["error"]["param"] == "dimensions"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": [[10**6]]}, "input"),
        ({"input": [5] * 300}, "input"),
        ({"input": ["a"] * 300}, "input"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"model": "nobody"}, "model"),
    ],
)
async def test_what_cannot_be_honoured_is_refused(embed, engine, fields, param):
    assert (await embed(**fields)).json()["error"]["param"] == param
    assert engine.requests == []


async def test_one_failure_ends_all(embed, engine):
    engine.script = lambda r: (
        [engine.event(r, [], reason=FinishReason.LENGTH)] if r.id.endswith("-0") else [60.0]
    )

    assert (await embed(input=["a", "b"])).status_code == 500
    assert engine.running == set()
