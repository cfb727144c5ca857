"""Every way to ask for a form reaches the engine as one grammar, or is refused by name."""

import asyncio
import threading
import time

import pytest

from multiflora.engine.text.grammar import (
    InvalidGrammar,
    choice_grammar,
    json_grammar,
    regex_grammar,
    text_grammar,
)
from multiflora.server.grammar_check import GrammarCheck
from multiflora.server.refusal import QueueFull

pytestmark = pytest.mark.anyio

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
LARK = 'start: "a" | "b"'


def response_format(schema, **fields):
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **fields}}


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({"response_format": {"type": "text"}}, ""),
        ({"response_format": {"type": "json_object"}}, json_grammar({"type": "object"})),
        ({"response_format": response_format(SCHEMA, strict=True)}, json_grammar(SCHEMA)),
        ({"guided_json": SCHEMA}, json_grammar(SCHEMA)),
        ({"guided_json": '{"type": "integer"}'}, json_grammar({"type": "integer"})),
        ({"guided_regex": "[ab]+"}, regex_grammar("[ab]+")),
        ({"guided_choice": ["a", "b"]}, choice_grammar(["a", "b"])),
        ({"guided_grammar": LARK}, text_grammar(LARK)),
        ({"structured_outputs": {"json": SCHEMA}}, json_grammar(SCHEMA)),
        ({"structured_outputs": {"json_object": True}}, json_grammar({"type": "object"})),
        ({"structured_outputs": {"regex": "a"}}, regex_grammar("a")),
        ({"structured_outputs": {"choice": ["a"]}}, choice_grammar(["a"])),
        ({"structured_outputs": {"grammar": LARK}}, text_grammar(LARK)),
        ({"structured_outputs": {}}, ""),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
async def test_all_spellings(chat, complete, engine, fields, grammar):
    assert (await chat(**fields)).status_code == 200
    assert (await complete(**fields)).status_code == 200

    assert {request.sampling.grammar for request in engine.requests} == {grammar}


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_object"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
        ({"response_format": response_format({"type": "x"})}, "response_format", "Invalid type"),
        ({"response_format": response_format({"not": {}})}, "response_format", "not"),
        ({"guided_regex": "("}, "guided_regex", "unclosed group"),
        ({"guided_json": "{"}, "guided_json", "no valid JSON"),
        ({"guided_choice": []}, "guided_choice", "not empty"),
        ({"guided_grammar": "start: x"}, "guided_grammar", "unknown name"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "unclosed"),
        ({"structured_outputs": {"structural_tag": {}}}, "structured_outputs.structural_tag", ""),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "guided_regex"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice", ""),
        ({"guided_regex": "a", "min_tokens": 3}, "min_tokens", "ends"),
        ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos", "ends"),
    ],
    ids=lambda value: str(value)[:50] if isinstance(value, dict) else "",
)
async def test_what_cannot_be_followed_is_refused_with_its_problem(
    chat, engine, fields, param, message
):
    response = await chat(**fields)

    error = response.json()["error"]
    assert response.status_code == 400
    assert error["param"] == param
    assert message in error["message"]
    assert engine.requests == []


async def test_a_grammar_that_had_no_turn_is_not_to_blame():
    check, gate = GrammarCheck(seconds=0.05), threading.Event()
    running = [
        asyncio.create_task(check.make(lambda: str(gate.wait()), param="guided_json"))
        for _ in range(2)
    ]
    await asyncio.sleep(0)

    with pytest.raises(QueueFull, match="too many grammars") as refused:
        await check.make(str, param="guided_json")
    assert refused.value.retry_after_seconds > 0
    outcomes = await asyncio.gather(*running, return_exceptions=True)
    gate.set()
    assert [type(outcome) for outcome in outcomes] == [InvalidGrammar, InvalidGrammar]


async def test_a_grammar_that_takes_too_long_is_refused():
    check = GrammarCheck(seconds=0.01)

    with pytest.raises(InvalidGrammar, match="simplify") as caught:
        await check.make(lambda: time.sleep(0.1) or "", param="guided_json")
    assert caught.value.param == "guided_json"
