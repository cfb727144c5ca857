"""POST /v1/responses with the typed client, whole and streamed."""

import openai
import pytest

from multiflora.engine.errors import RequestFailed
from multiflora.engine.text.grammar import json_grammar

from .test_tools import CALL, TOOLS
from .test_tools import tokenizer as tokenizer

pytestmark = pytest.mark.anyio

FLAT = [{"type": "function", **tool["function"]} for tool in TOOLS]


@pytest.fixture
async def responses(url):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client.responses


def prompt_text(engine):
    return engine.tokenizer.decode(engine.requests[-1].prompt, skip_special_tokens=False)


async def test_a_response_has_text_and_usage(responses, engine):
    answer = await responses.create(
        model="json", input="hi", instructions="be brief", max_output_tokens=9, metadata={"a": "b"}
    )

    assert answer.output_text == "hello world"
    assert (answer.status, answer.object, answer.model) == ("completed", "response", "json")
    assert answer.metadata == {"a": "b"}
    assert answer.usage.input_tokens == len(engine.requests[0].prompt)
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert prompt_text(engine) == "<|system|>be brief</s><|user|>hi</s><|assistant|>"


async def test_an_answer_that_was_cut_is_incomplete(responses):
    answer = await responses.create(model="base", input="hi", max_output_tokens=1)

    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"


async def test_events_come_in_order_and_add_up(responses):
    stream = await responses.create(model="base", input="hi", stream=True)
    events = [event async for event in stream]

    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == "hello world"
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].response.output_text == "hello world"
    assert events[-1].response.usage.output_tokens > 0


async def test_calls_are_items(responses, engine):
    engine.text = f"Hm. {CALL}"

    answer = await responses.create(model="base", input="hi", tools=FLAT)
    stream = await responses.create(model="base", input="hi", tools=FLAT, stream=True)
    events = [event async for event in stream]

    message, call = answer.output
    assert message.content[0].text == "Hm."
    assert (call.name, call.arguments, call.status) == (
        "weather",
        '{"city": "Bonn"}',
        "completed",
    )
    kind = "response.function_call_arguments.delta"
    assert "".join(e.delta for e in events if e.type == kind) == call.arguments
    assert [item.type for item in events[-1].response.output] == ["message", "function_call"]


async def test_calls_and_their_results_are_sent_back(responses, engine):
    await responses.create(
        model="base",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "function_call", "call_id": "c1", "name": "time", "arguments": '{"a": 1}'},
            {"type": "function_call_output", "call_id": "c1", "output": "noon"},
        ],
    )

    assert '{"a": 1}</s><|tool|>noonfor c1</s><|assistant|>' in prompt_text(engine)


async def test_a_schema_is_followed(responses, engine):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "name": "x", "schema": schema, "strict": True}

    await responses.create(model="base", input="hi", text={"format": form})

    assert engine.requests[0].sampling.grammar == json_grammar(schema)


async def test_a_failure_in_the_middle_is_the_last_event(responses, engine):
    engine.script = lambda request: [
        engine.event(request, engine.tokenizer.encode("hello")),
        RequestFailed("the engine died", code="engine_died"),
    ]

    stream = await responses.create(model="base", input="hi", stream=True)
    events = [event async for event in stream]

    assert events[-1].type == "response.failed"
    assert events[-1].response.error.code == "engine_died"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "image"}]}, "input"),
        ({"input": [{"role": "user"}]}, "input.0.content"),
        ({"input": [{"type": "function_call", "call_id": "a"}]}, "input.0.name"),
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"temperature": 3}, "temperature"),
    ],
)
async def test_what_cannot_be_honoured_is_refused(client, engine, fields, param):
    response = await client.post("/v1/responses", json={"model": "base", "input": "x", **fields})

    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith(param)
    assert engine.requests == []


async def test_unknown_fields_are_named(client):
    body = {"model": "base", "input": "x", "colour": 1}

    response = await client.post("/v1/responses", json=body)

    assert response.headers["x-ignored-fields"] == "colour"
