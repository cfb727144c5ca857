"""What is learnt is what serving asks for: prompts of the chat route, answers to the last token."""

import asyncio
import json
import re
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multiflora.engine.text.chat_template import ChatTemplate
from multiflora.engine.training.data.conversation import Conversation, render_conversations
from multiflora.engine.training.data.problem import RowRejected
from multiflora.engine.training.data.renderer import Renderer
from multiflora.engine.training.data.row import ChatRow
from multiflora.server.prompting import tokenize_chat
from multiflora.server.schemas.body import parse_body
from multiflora.server.schemas.chat import ChatBody
from multiflora.server.text_work import TextWork

from .conftest import FAMILIES, MakeRenderer

USABLE = [name for name in FAMILIES if name != "opened"]
USER = {"role": "user", "content": "What is 3 + 4?"}
THOUGHT = {"role": "assistant", "content": "<think>\n3 and 4\n</think>\n\n7"}


def chat(*contents: str, is_trained: tuple[bool, ...] | None = None) -> ChatRow:
    """User and assistant in turn."""
    roles = ("user", "assistant")
    messages = tuple({"role": roles[i % 2], "content": c} for i, c in enumerate(contents))
    trained = is_trained or tuple(i % 2 == 1 for i in range(len(contents)))
    return ChatRow(messages, trained, 1)


def learnt(renderer: Renderer, conversation: Conversation) -> list[str]:
    tokenizer = renderer.tokenizer
    return [
        tokenizer.decode(conversation.ids[span.start : span.end], skip_special_tokens=False)
        for span in conversation.spans
        if span.is_trained
    ]


def served_prompt(renderer: Renderer, messages: Any) -> list[int]:
    """What the chat route makes of these messages."""
    sent = json.dumps({"model": "base", "messages": list(messages)})
    body = parse_body(sent.encode(), ChatBody)
    rendered = InPlace(renderer._template)
    (ids,) = asyncio.run(
        tokenize_chat(
            TextWork(),
            renderer.tokenizer,
            body,
            renderer=rendered,
            num_bytes=len(sent),
            max_model_len=10**6,
        )
    )
    return list(ids)


@dataclass(frozen=True)
class InPlace:
    """A template rendered by this process."""

    template: ChatTemplate

    async def render(self, messages: Any, **options: Any) -> str:
        return self.template.render(messages, **options)


# Marks, white space and letters in odd places; the answers must not be blank.
TEXT = st.text(
    st.one_of(
        st.sampled_from(" \n<|>[]/sIN:é🙂"), st.characters(codec="utf-8", exclude_categories=["Cs"])
    ),
    max_size=12,
)
SNIPPETS = st.sampled_from(
    ["<|im_end|>", "</s>", "<|end|>", "<end_of_turn>", "<|eot_id|>", "[INST]", "Assistant: ", "  "]
)
CONTENT = st.lists(st.one_of(TEXT, SNIPPETS), min_size=1, max_size=4).map("".join)
QUOTES = {"\U000f0000", "\U000f0001"}
NOT_BLANK = CONTENT.filter(lambda text: text.strip() and not QUOTES & set(text))
CHATS = st.lists(NOT_BLANK, min_size=2, max_size=6).map(lambda texts: texts[: len(texts) // 2 * 2])


@pytest.mark.parametrize("name", USABLE)
@settings(max_examples=60, deadline=None)
@given(contents=CHATS)
def test_the_learnt_tokens_are_the_answers_and_their_ends(
    make_renderer: MakeRenderer, name: str, contents: list[str]
) -> None:
    renderer, family = make_renderer(name), FAMILIES[name]
    if "</think>" in "".join(contents):
        return
    found = render_conversations(chat(*contents), renderer)

    texts = [text for each in found for text in learnt(renderer, each)]
    expected = [_written(name, text) for text in contents[1::2]]
    # Byte-fallback decoders lose a space that a text begins with.
    assert [t.lstrip() for t in texts] == [t.lstrip() for t in expected]
    for each in found:
        for span in each.spans:
            ends = [t for t in each.ids[span.start : span.end] if t in renderer.end_tokens]
            assert ends == each.ids[span.end - 1 : span.end]
    assert family.keeps_history is False or len(found) <= len(contents) // 2


def _written(name: str, answer: str) -> str:
    family = FAMILIES[name]
    text = answer.strip() if family.trims else answer
    thought = "<think>\n\n</think>\n\n" if name == "thinking" else ""
    end = {"speakers": "<eos>"}.get(name, family.end)
    return f"{thought}{text}{end}"


@pytest.mark.parametrize("name", USABLE)
@settings(max_examples=40, deadline=None)
@given(contents=CHATS)
def test_every_answer_follows_the_tokens_that_the_chat_route_sends(
    make_renderer: MakeRenderer, name: str, contents: list[str]
) -> None:
    renderer = make_renderer(name)
    row = chat(*contents)
    spans = [
        (each.ids, span.start)
        for each in render_conversations(row, renderer)
        for span in each.spans
    ]
    places = [place for place, is_trained in enumerate(row.is_trained) if is_trained]
    assert len(spans) == len(places)
    for (ids, start), place in zip(spans, places, strict=True):
        assert ids[:start] == served_prompt(renderer, row.messages[:place])


@pytest.mark.parametrize("name", [name for name in USABLE if FAMILIES[name].keeps_history])
def test_a_template_that_keeps_the_history_makes_one_sequence(
    make_renderer: MakeRenderer, name: str
) -> None:
    row = chat("What is 3 + 4?", "7", "Are you sure?", "<think>\nhm\n</think>\n\nYes.")
    (conversation,) = render_conversations(row, make_renderer(name))
    assert len(conversation.spans) == 2


@pytest.mark.parametrize("name", ["thinking", "speakers"])
def test_a_template_that_rewrites_the_history_makes_a_sequence_per_answer(
    make_renderer: MakeRenderer, name: str
) -> None:
    renderer = make_renderer(name)
    thought = "<think>\n3 and 4\n</think>\n\n7"
    found = render_conversations(chat("What is 3 + 4?", thought, "Sure?", "Yes."), renderer)
    assert [len(each.spans) for each in found] == [1, 1]
    assert thought in learnt(renderer, found[0])[0]
    history = renderer.tokenizer.decode(found[1].ids[: found[1].spans[0].start])
    assert ("3 and 4" in history) == (name == "speakers")


def test_thoughts_of_earlier_turns_stay_where_the_template_keeps_them(
    make_renderer: MakeRenderer,
) -> None:
    """Rows that correct a question: nothing of them is touched."""
    renderer = make_renderer("chatml")
    contents = ["What is 3 + ?", "<think>half a question</think>4?", "I meant 3 + 4.", "7"]
    (conversation,) = render_conversations(chat(*contents), renderer)
    text = renderer.tokenizer.decode(conversation.ids)
    assert all(content in text for content in contents)
    assert learnt(renderer, conversation)[0] == "<think>half a question</think>4?<|im_end|>"


def test_untrained_answers_are_read_and_not_learnt(make_renderer: MakeRenderer) -> None:
    renderer = make_renderer("demo")
    row = chat("a", "wrong", "b", "right", is_trained=(False, False, False, True))
    (conversation,) = render_conversations(row, renderer)
    assert learnt(renderer, conversation) == ["right<|end|>"]
    assert "wrong" in renderer.tokenizer.decode(conversation.ids)
    (marked,) = render_conversations(row, renderer, with_untrained=True)
    assert marked.ids == conversation.ids
    assert [span.is_trained for span in marked.spans] == [False, True]


def test_a_prompt_that_the_written_answer_does_not_begin_with_is_refused(
    make_renderer: MakeRenderer,
) -> None:
    with pytest.raises(RowRejected, match=r"asks for the answer with .*<think>") as caught:
        render_conversations(ChatRow((USER, THOUGHT), (False, True), 1), make_renderer("opened"))
    assert caught.value.code == "template_rewrites_prompt"


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ("{{ m.content.split('</think>')[-1] }}", THOUGHT),
        ("{{ m.content[:3] }}", {"role": "assistant", "content": "seven"}),
        (
            "{{ m.content }}",
            {"role": "assistant", "content": "7", "reasoning_content": "3 and 4"},
        ),
    ],
    ids=["thought", "cut", "reasoning_content"],
)
def test_a_template_that_drops_a_part_of_the_answer_is_refused(
    make_renderer: MakeRenderer, written: str, answer: dict[str, str]
) -> None:
    demo = make_renderer("demo")
    template = ChatTemplate(
        {
            "default": "{% for m in messages %}#" + written + "{% endfor %}"
            "{% if add_generation_prompt %}#{% endif %}"
        }
    )
    renderer = Renderer(demo.tokenizer, template, end_tokens=demo.end_tokens)
    with pytest.raises(RowRejected, match=re.escape("leaves out a part of the answer's")) as caught:
        renderer.chat([{"role": "user", "content": "a"}, answer])
    assert caught.value.code == "template_drops_answer"


def test_what_the_template_refuses_is_the_rows_fault(make_renderer: MakeRenderer) -> None:
    renderer = make_renderer("demo")
    row = ChatRow(({"role": "critic", "content": "a"}, THOUGHT), (False, True), 1)
    with pytest.raises(RowRejected, match="Only the roles system, user and assistant"):
        render_conversations(row, renderer)
