"""Calls are told from content in all families, however the text is cut."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiflora.engine.text.tool_calls.family import call_syntax
from multiflora.engine.text.tool_calls.hermes import HermesSyntax
from multiflora.engine.text.tool_calls.llama import LlamaSyntax
from multiflora.engine.text.tool_calls.mistral import MistralSyntax

HERMES, LLAMA, MISTRAL, NAMED = (
    HermesSyntax(),
    LlamaSyntax(),
    MistralSyntax(),
    MistralSyntax(has_arguments_token=True),
)
TEXT = 'quo"te } ] \\ </tool_call> \u00fc\n'
A, B = {"x": [1, {"y": TEXT}], "z": {}}, {}
DUMPED = json.dumps(A)


def read(syntax, pieces, **options):
    """Content, and (name, arguments) of every call."""
    reader = syntax.reader(**options)
    readings = [*map(reader.push, pieces), reader.finish()]
    calls = {}
    for delta in (delta for reading in readings for delta in reading.calls):
        if delta.id is not None:
            assert delta.index == len(calls)
            calls[delta.index] = [delta.name, ""]
        calls[delta.index][1] += delta.arguments
    return "".join(reading.content for reading in readings), [tuple(c) for c in calls.values()]


CASES = [
    (HERMES, f'<tool_call>\n{{"name": "f", "arguments": {DUMPED}}}\n</tool_call>', ""),
    (HERMES, f'Well.\n<tool_call>{{"arguments": {DUMPED}, "name": "f"}}</tool_call>', "Well."),
    (HERMES, f'<tool_call>{{"name": "f", "arguments": {json.dumps(DUMPED)}}}', ""),
    (LLAMA, f'{{"name": "f", "parameters": {DUMPED}}}', ""),
    (LLAMA, f'<|python_tag|>{{"type": "function", "name": "f", "parameters": {DUMPED}}}', ""),
    (MISTRAL, f'[TOOL_CALLS] [{{"name": "f", "arguments": {DUMPED}, "id": "abc"}}]', ""),
    (MISTRAL, f'Hm [TOOL_CALLS][{{"name": "f", "arguments": {DUMPED}}}]', "Hm"),
    (NAMED, f"[TOOL_CALLS]f[ARGS]{DUMPED}", ""),
]


@pytest.mark.parametrize(("syntax", "text", "content"), CASES)
@given(cuts=st.lists(st.integers(0, 150), max_size=12))
def test_a_call_is_read_however_it_is_cut(syntax, text, content, cuts):
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in pairwise(places)]

    assert read(syntax, pieces) == (content, [("f", DUMPED)])
    assert read(syntax, list(text)) == (content, [("f", DUMPED)])


SEVERAL = [
    (HERMES, '<tool_call>{"name":"f","arguments":{}}</tool_call>\n' * 2),
    (LLAMA, '{"name": "f", "parameters": {}}; {"name": "f", "parameters": {}}'),
    (MISTRAL, '[TOOL_CALLS] [{"name":"f","arguments":{}}, {"name":"f","arguments":{}}]'),
    (NAMED, "[TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]f[ARGS]{}"),
]


@pytest.mark.parametrize(("syntax", "text"), SEVERAL)
def test_several_calls_and_at_most_as_many_as_allowed(syntax, text):
    assert read(syntax, [text])[1] == [("f", "{}")] * 2
    assert read(syntax, list(text), max_calls=1)[1] == [("f", "{}")]


PLAIN = [
    (HERMES, "  no call <tool_cal > {} \n"),
    (HERMES, "<tool"),
    (LLAMA, "Just text; nothing else."),
    (LLAMA, '{"answer": {"name": 1}} is JSON'),
    (LLAMA, "{"),
    (MISTRAL, '[{"name": "f", "arguments": {}}]'),
    (NAMED, "f[ARGS]{}"),
]


@pytest.mark.parametrize(("syntax", "text"), PLAIN)
def test_what_is_no_call_is_content(syntax, text):
    assert read(syntax, [text]) == (text, [])
    assert read(syntax, list(text)) == (text, [])


def test_arguments_stream_before_they_are_complete():
    reader = HERMES.reader()
    first = reader.push('<tool_call>{"name": "f", "arguments": {"a": "long')

    assert [(d.name, d.arguments) for d in first.calls] == [("f", '{"a": "long')]
    assert [(d.id, d.arguments) for d in reader.push('er"').calls] == [(None, 'er"')]


@given(st.text(alphabet='<tool_call>{"name:} [TOOL_CALLS]ARGS,;', max_size=60))
@pytest.mark.parametrize("syntax", [HERMES, LLAMA, MISTRAL, NAMED])
def test_no_text_breaks_a_reader(syntax, text):
    assert read(syntax, list(text)) == read(syntax, [text])


@pytest.mark.parametrize(
    ("template", "kind"),
    [
        ("{{ tools }} <tool_call>", HermesSyntax),
        ("{{ tools }} [TOOL_CALLS]", MistralSyntax),
        ("{{ tools }} <|python_tag|>", LlamaSyntax),
        ("{{ messages }}", type(None)),
        ("{{ tools }}", type(None)),
    ],
)
def test_the_family_is_told_by_its_template(template, kind):
    assert isinstance(call_syntax({"default": template}), kind)
