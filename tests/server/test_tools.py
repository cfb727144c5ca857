"""Tools in chat: rendered by the template, read from the answer, forced by a grammar."""

import json

import openai
import pytest

from multiflora.engine.text.tokenizer import load_tokenizer

from .conftest import write_tokenizer

pytestmark = pytest.mark.anyio

HERMES = (
    "{% for tool in tools or [] %}{{ tool.function.description }}<tool_call>{% endfor %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.arguments | tojson }}{% endfor %}"
    "{% if m.tool_call_id %}for {{ m.tool_call_id }}{% endif %}</s>{% endfor %}<|assistant|>"
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "of a city",
            "parameters": {"properties": {"city": {"type": "string"}}},
        },
    },
    {"type": "function", "function": {"name": "time"}},
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call>'


@pytest.fixture
def tokenizer(tmp_path):
    write_tokenizer(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": HERMES}))
    return load_tokenizer(tmp_path)


@pytest.fixture
async def openai_client(url):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def prompt_text(engine):
    return engine.tokenizer.decode(engine.requests[-1].prompt, skip_special_tokens=False)


async def test_a_call_is_a_typed_message(openai_client, engine):
    engine.text = f"Let me see.\n{CALL}\n{CALL}"

    answer = await openai_client.chat.completions.create(
        model="base", messages=[{"role": "user", "content": "hi"}], tools=TOOLS
    )

    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see."
    assert [call.function.name for call in choice.message.tool_calls] == ["weather"] * 2
    assert choice.message.tool_calls[0].function.arguments == '{"city": "Bonn"}'
    assert len({call.id for call in choice.message.tool_calls}) == 2
    assert "of a city" in prompt_text(engine)
    assert engine.requests[0].sampling.grammar == ""


async def test_arguments_are_streamed(openai_client, engine):
    engine.text = f"Hm.{CALL}"

    stream = await openai_client.chat.completions.create(
        model="base", messages=[{"role": "user", "content": "hi"}], tools=TOOLS, stream=True
    )
    chunks = [chunk.choices[0] async for chunk in stream]

    pieces = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == "Hm."
    assert (pieces[0].index, pieces[0].function.name, pieces[0].type) == (0, "weather", "function")
    assert "".join(piece.function.arguments for piece in pieces) == '{"city": "Bonn"}'
    assert len(pieces) > 3
    assert chunks[-1].finish_reason == "tool_calls"


async def test_one_call_where_calls_are_not_parallel(chat, engine):
    engine.text = CALL * 2

    answer = await chat(tools=TOOLS, parallel_tool_calls=False)

    assert len(answer.json()["choices"][0]["message"]["tool_calls"]) == 1


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", ("weather", "time")),
        ({"type": "function", "function": {"name": "time"}}, ("time",)),
    ],
)
async def test_a_forced_call_has_a_grammar(chat, engine, choice, names):
    assert (await chat(tools=TOOLS, tool_choice=choice)).status_code == 200

    grammar = engine.requests[0].sampling.grammar
    for name in ("weather", "time"):
        assert (f'\\"{name}' in grammar) == (name in names)


async def test_none_hides_the_tools_and_reads_no_calls(chat, engine):
    engine.text = CALL

    choice = (await chat(tools=TOOLS, tool_choice="none")).json()["choices"][0]

    assert choice["message"] == {"role": "assistant", "content": CALL, "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert "city" not in prompt_text(engine)


async def test_calls_and_results_are_part_of_the_conversation(chat, engine):
    call = {"id": "c1", "type": "function", "function": {"name": "time", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
    ]

    assert (await chat(messages=messages, tools=TOOLS)).status_code == 200

    assert '{"a": 1}</s><|tool|>noonfor c1</s><|assistant|>' in prompt_text(engine)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [{"type": "retrieval"}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": TOOLS * 65}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "some"}, "tool_choice"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice.function.name",
        ),
        ({"tools": TOOLS, "guided_regex": "a"}, "tool_choice"),
        (
            {
                "tools": [
                    {"type": "function", "function": {"name": "f", "parameters": {"type": "x"}}}
                ],
                "tool_choice": "required",
            },
            "tools",
        ),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
async def test_what_cannot_be_honoured_is_refused(chat, engine, fields, param):
    response = await chat(**fields)

    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith(param)
    assert engine.requests == []


async def test_arguments_that_are_no_object_are_refused(chat):
    call = {"id": "c1", "type": "function", "function": {"name": "time", "arguments": "[1]"}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]}]

    error = (await chat(messages=messages, tools=TOOLS)).json()["error"]

    assert error["param"] == "messages.0.tool_calls"
