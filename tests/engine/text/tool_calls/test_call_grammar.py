"""Forced calls are written as each family writes them, and nothing else is."""

import json

import pytest
from llguidance import LLMatcher, LLTokenizer

from multiflora.engine.text.grammar import InvalidGrammar, quoted
from multiflora.engine.text.tool_calls.call import Function
from multiflora.engine.text.tool_calls.hermes import HermesSyntax
from multiflora.engine.text.tool_calls.llama import LlamaSyntax
from multiflora.engine.text.tool_calls.mistral import MistralSyntax

SHAPE = {
    "$ref": "#/$defs/point",
    "$defs": {
        "point": {
            "properties": {"x": {"type": "integer"}},
            "required": ["x"],
            "additionalProperties": False,
        }
    },
}
FUNCTIONS = [Function("move", SHAPE), Function("st.op-2", {})]
ONE, OTHER = '{"x":1}', "{}"
TEXTS = [
    (
        HermesSyntax(),
        f'<tool_call>\n{{"name": "move", "arguments": {ONE}}}\n</tool_call>',
        f'\n<tool_call>\n{{"name": "st.op-2", "arguments": {OTHER}}}\n</tool_call>',
    ),
    (
        LlamaSyntax(),
        f'{{"name": "move", "parameters": {ONE}}}',
        f'; {{"name": "st.op-2", "parameters": {OTHER}}}',
    ),
    (
        MistralSyntax(has_arguments_token=True),
        f"[TOOL_CALLS]move[ARGS]{ONE}",
        f"[TOOL_CALLS]st.op-2[ARGS]{OTHER}",
    ),
]


@pytest.fixture
def accepts(byte_level):
    trie = LLTokenizer(byte_level.to_str(), eos_token=byte_level.token_to_id("</s>"))

    def check(lark, text):
        matcher = LLMatcher(trie, LLMatcher.grammar_from_lark(lark))
        assert not matcher.is_error(), matcher.get_error()
        tokens = byte_level.encode(text, add_special_tokens=False).ids
        return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()

    return check


@pytest.mark.parametrize(("syntax", "first", "second"), TEXTS)
def test_one_call_or_several(syntax, first, second, accepts):
    several = syntax.grammar(FUNCTIONS, quoted, is_parallel=True)
    single = syntax.grammar(FUNCTIONS, quoted, is_parallel=False)

    assert accepts(several, first)
    assert accepts(several, first + second)
    assert accepts(single, first)
    assert not accepts(single, first + second)
    for wrong in ("", "hello", first.replace("move", "walk"), first.replace(ONE, '{"x":"1"}')):
        assert not accepts(several, wrong)
    _, calls = read(syntax, first + second)
    assert calls == [("move", ONE), ("st.op-2", OTHER)]


def test_a_list_of_calls(accepts):
    syntax = MistralSyntax()
    calls = [{"name": "move", "arguments": {"x": 1}}, {"name": "st.op-2", "arguments": {}}]
    text = f"[TOOL_CALLS] {json.dumps(calls)}".replace('{"x": 1}', ONE)

    assert accepts(syntax.grammar(FUNCTIONS, quoted, is_parallel=True), text)
    assert not accepts(syntax.grammar(FUNCTIONS, quoted, is_parallel=False), text)


def test_parameters_have_the_bounds_of_schemas():
    with pytest.raises(InvalidGrammar, match="elements"):
        LlamaSyntax().grammar([Function("f", {"enum": [0] * 5001})], quoted, is_parallel=True)


def read(syntax, text):
    reader = syntax.reader()
    reading = reader.push(text)
    return reading.content + reader.finish().content, [(c.name, c.arguments) for c in reading.calls]
