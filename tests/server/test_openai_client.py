"""The unmodified openai client against a real server on a loopback port."""

import asyncio
import os
import signal

import httpx
import openai
import pytest

from multiflora.engine.errors import EngineOverloaded, RequestFailed
from multiflora.engine.request import FinishReason

pytestmark = pytest.mark.anyio


@pytest.fixture
async def openai_client(url):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


MESSAGES = [{"role": "user", "content": "hi"}]


async def test_models_are_listed_and_retrieved(openai_client):
    listed = [model.id async for model in openai_client.models.list()]

    assert listed == ["base", "json", "loud:one"]
    assert (await openai_client.models.retrieve("json")).id == "json"
    with pytest.raises(openai.NotFoundError) as caught:
        await openai_client.models.retrieve("nobody")
    assert caught.value.code == "model_not_found"


async def test_chat_whole_and_streamed(openai_client):
    whole = await openai_client.chat.completions.create(model="json", messages=MESSAGES)
    stream = await openai_client.chat.completions.create(
        model="json", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]

    assert whole.choices[0].message.content == "hello world"
    pieces = [c.delta.content or "" for chunk in chunks for c in chunk.choices]
    assert "".join(pieces) == "hello world"
    assert chunks[-1].usage == whole.usage
    assert chunks[-1].choices == []


async def test_completions_of_token_ids(openai_client, engine):
    answer = await openai_client.completions.create(model="base", prompt=[[5, 6], [7]], n=2)

    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.prompt_tokens == 3
    assert {request.prompt for request in engine.requests} == {(5, 6), (7,)}


async def test_typed_logprobs(openai_client):
    chat = await openai_client.chat.completions.create(
        model="base", messages=MESSAGES, logprobs=True, top_logprobs=2
    )
    echo = await openai_client.completions.create(
        model="base", prompt="hi", echo=True, logprobs=1, max_tokens=1, logit_bias={"5": -100}
    )

    assert "".join(entry.token for entry in chat.choices[0].logprobs.content) == "hello world"
    assert len(chat.choices[0].logprobs.content[0].top_logprobs) == 2
    assert echo.choices[0].logprobs.token_logprobs[0] is None
    assert "".join(echo.choices[0].logprobs.tokens) == echo.choices[0].text


async def test_errors_have_codes_and_request_ids(openai_client):
    with pytest.raises(openai.BadRequestError) as caught:
        await openai_client.completions.create(model="base", prompt="x", temperature=9)

    assert caught.value.param == "temperature"
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id


async def test_a_full_queue_is_a_rate_limit_that_the_client_retries(url, engine):
    refusals = [EngineOverloaded("full")]
    engine.script = lambda request: [refusals.pop()] if refusals else engine.say(request)

    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=1) as client:
        answer = await client.completions.create(model="base", prompt="x")

    assert answer.choices[0].text == "hello world"


async def test_a_death_in_the_middle_of_a_stream_is_raised(openai_client, engine):
    engine.script = lambda request: [
        engine.event(request, engine.tokenizer.encode("hello")),
        RequestFailed("the engine died", code="engine_died"),
    ]

    stream = await openai_client.chat.completions.create(
        model="json", messages=MESSAGES, stream=True
    )

    with pytest.raises(openai.APIError) as caught:
        _ = [chunk async for chunk in stream]
    assert caught.value.code == "engine_died"


async def test_ten_megabytes_are_refused_with_an_answer(openai_client):
    with pytest.raises(openai.APIStatusError) as caught:
        await openai_client.completions.create(model="base", prompt="x" * 10_000_000)

    assert caught.value.status_code == 413
    assert caught.value.code == "request_too_large"


async def test_the_first_signal_lets_running_requests_finish(url, engine, service):
    def script(request):
        yield engine.event(request, engine.tokenizer.encode("hello"))
        yield 0.5
        yield engine.event(request, [], reason=FinishReason.STOP)

    engine.script = script
    async with httpx.AsyncClient(base_url=url) as client:
        body = {"model": "base", "prompt": "x"}
        running = asyncio.create_task(client.post("/v1/completions", json=body))
        await asyncio.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.05)
        assert (await client.get("/ready")).status_code == 503
        refused = await client.post("/v1/completions", json=body)

        assert refused.json()["error"]["code"] == "draining"
        assert (await running).json()["choices"][0]["text"] == "hello"


async def test_what_outlives_the_drain_ends_with_the_engine(url, engine):
    """The fixture's drain lasts one second; a stopped engine ends its streams."""

    def script(request):
        yield engine.event(request, engine.tokenizer.encode("hello"))
        while not engine.num_stops:
            yield 0.01
        yield RequestFailed("stopped", code="engine_died")

    engine.script = script
    async with httpx.AsyncClient(base_url=url) as client:
        body = {"model": "base", "prompt": "x", "stream": True}
        running = asyncio.create_task(client.post("/v1/completions", json=body))
        await asyncio.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

        assert '"code":"engine_died"' in (await running).text
