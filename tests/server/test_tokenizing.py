"""The tokenizer over HTTP, and the deletion of models."""

import asyncio

import openai
import pytest

from multiflora.server.access.api_key import KeyWish
from multiflora.server.access.caller import Scope
from multiflora.server.rate_limit import RateLimits

pytestmark = pytest.mark.anyio

MESSAGES = [{"role": "user", "content": "hi</s>"}]


async def test_a_text_goes_to_tokens_and_back(client, tokenizer):
    body = {"model": "json", "prompt": "hello <s>", "return_token_strs": True}
    answer = (await client.post("/tokenize", json=body)).json()

    tokens = tokenizer.encode("hello <s>")
    assert (answer["tokens"], answer["count"], answer["max_model_len"]) == (
        tokens,
        len(tokens),
        256,
    )
    assert answer["token_strs"][-1] == "<s>"
    text = (await client.post("/detokenize", json={"tokens": tokens})).json()
    assert text == {"prompt": "hello <s>"}


async def test_a_conversation_has_the_tokens_that_chat_would_send(client, chat, engine):
    answer = (await client.post("/tokenize", json={"messages": MESSAGES})).json()
    await chat(messages=MESSAGES)

    assert tuple(answer["tokens"]) == engine.requests[0].prompt


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"continue_final_message": True}, "continue_final_message"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}] * 129}, "tools"),
        ({"messages": MESSAGES * 4097}, "messages"),
    ],
    ids=["both_ways_to_end", "tools", "messages"],
)
async def test_a_conversation_that_chat_would_refuse_is_refused(client, fields, param):
    answer = await client.post("/tokenize", json={"messages": MESSAGES, **fields})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


async def test_what_a_harness_needs_instead_of_a_tokenizer(client, tokenizer):
    info = (await client.get("/tokenizer_info")).json()

    assert (info["bos_token"], info["eos_token"]) == ("<s>", "</s>")
    assert "add_generation_prompt" in info["chat_template"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt"),
        ("/tokenize", {"prompt": "a", "model": "nobody"}, "model"),
        ("/detokenize", {"tokens": [10**6]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens.0"),
        ("/detokenize", {}, "tokens"),
    ],
)
async def test_what_cannot_be_honoured_is_refused(client, path, body, param):
    error = (await client.post(path, json=body)).json()["error"]

    assert error["param"] == param


async def test_texts_are_bounded_before_they_are_encoded(client):
    for fields in (
        {"prompt": "a" * 1_000_001},
        {"messages": [{**MESSAGES[0], "content": "a" * 10**6}]},
    ):
        refused = await client.post("/tokenize", json=fields)

        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == next(iter(fields))
    assert (await client.post("/detokenize", json={"tokens": [5] * 1_000_001})).status_code == 400


async def test_a_large_text_leaves_the_event_loop_to_others(client):
    encoding = asyncio.create_task(client.post("/tokenize", json={"prompt": "ab " * 100_000}))
    await asyncio.sleep(0.01)
    for _ in range(5):
        assert (await client.get("/live")).status_code == 200

    assert not encoding.done()
    assert (await encoding).json()["count"] > 100_000


async def test_texts_count_as_requests_of_their_key(client, service):
    limits = RateLimits(requests_per_minute=2, tokens_per_minute=1)
    wish = KeyWish(name="ci", scopes=frozenset({Scope.INFERENCE}), limits=limits)
    key = service.keyring.registry.create(wish)[1]
    answers = [
        await client.post(path, json=body, headers={"authorization": f"Bearer {key}"})
        for path, body in (
            ("/tokenize", {"prompt": "hello"}),
            ("/detokenize", {"tokens": [5]}),
            ("/tokenize", {"prompt": "hello"}),
        )
    ]

    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[-1].json()["error"]["code"] == "rate_limited"
    assert int(answers[-1].headers["retry-after-ms"]) > 10_000


async def test_a_draining_server_encodes_nothing(client, service):
    service.drain.begin()

    answer = await client.post("/tokenize", json={"prompt": "hello"})

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")


async def test_an_adapter_is_deleted_and_the_base_is_not(url, registry):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        deleted = await client.models.delete("base:json")
        with pytest.raises(openai.NotFoundError):
            await client.models.delete("json")
        with pytest.raises(openai.BadRequestError, match="base cannot be deleted"):
            await client.models.delete("base")

    assert (deleted.id, deleted.deleted) == ("json", True)
    assert [entry.name for entry in registry.entries()] == ["loud:one"]
