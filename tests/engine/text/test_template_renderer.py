"""Templates in a process of their own: same text, bounded cost, and a death that hurts one only."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable

import pytest

from multiflora.engine.errors import EngineOverloaded, EngineUnavailable, RequestRejected
from multiflora.engine.text import template_renderer
from multiflora.engine.text.chat_template import ChatTemplate
from multiflora.engine.text.template_renderer import RenderLimits, TemplateRenderer

pytestmark = pytest.mark.anyio
# The first message chooses what the template does.
TEMPLATE = """{%- set text = messages[0]['content'] -%}
{%- if text == 'memory' -%}{{ ('x' * 5000000000) | length }}
{%- elif text == 'time' -%}
{%- for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor -%}
{%- elif text == 'sandbox' -%}{{ messages.__class__.__mro__ }}
{%- elif text == 'long' -%}{% for a in range(9999) %}{{ 'x' * 100 }}{% endfor %}
{%- else -%}<{{ bos_token }}{{ text }}{{ who }}>{%- endif -%}"""
Renderers = Callable[..., TemplateRenderer]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def wall_seconds(request: pytest.FixtureRequest) -> float:
    """So long that a busy machine does not end what only takes its turn."""
    return getattr(request, "param", 30.0)


@pytest.fixture
async def renderer(wall_seconds: float) -> AsyncIterator[TemplateRenderer]:
    special = {"bos_token": "s"}
    template = ChatTemplate({"default": TEMPLATE}, special_tokens=special, max_chars=9999)
    limits = RenderLimits(memory_bytes=256 << 20, cpu_seconds=0.3, wall_seconds=wall_seconds)
    renderer = TemplateRenderer(template, limits=limits)
    await renderer.start()
    yield renderer
    await renderer.stop()


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


async def test_answers_come_in_the_order_of_the_questions(renderer: TemplateRenderer) -> None:
    texts = [f"t{n}" for n in range(50)]
    questions = (renderer.render(chat(text), extra={"who": "me"}) for text in texts)
    assert await asyncio.gather(*questions) == [f"<s{text}me>" for text in texts]
    with pytest.raises(RequestRejected) as refusal:
        await renderer.render(chat("a"), extra={"messages": []})
    assert refusal.value.param == "chat_template_kwargs.messages"
    assert renderer.num_starts == 1


async def test_what_takes_too_much_ends_alone(renderer: TemplateRenderer) -> None:
    texts = ["a", "memory", "b", "time", "c", "sandbox", "d", "long", "e"]
    questions = (renderer.render(chat(text)) for text in texts)
    outcomes = await asyncio.gather(*questions, return_exceptions=True)
    good = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert good == [f"<s{text}>" for text in "abcde"]
    wrong = [str(outcome) for outcome in outcomes if isinstance(outcome, RequestRejected)]
    assert ["memory" in wrong[0], "takes too long" in wrong[1]] == [True, True]
    assert ["refused" in wrong[2], "longer than" in wrong[3]] == [True, True]
    assert renderer.num_starts == 2, "only the one without end took the process with it"


async def test_it_survives_the_death_of_the_process(renderer: TemplateRenderer) -> None:
    pid = renderer.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    waiting = asyncio.create_task(renderer.render(chat("a")))
    await asyncio.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    assert await waiting == "<sa>"
    assert renderer.pid != pid


@pytest.mark.parametrize("wall_seconds", [1.0], indirect=True)
async def test_a_process_that_stands_still_is_replaced(renderer: TemplateRenderer) -> None:
    await renderer.render(chat("a"))
    assert renderer.pid is not None
    os.kill(renderer.pid, signal.SIGSTOP)
    assert await renderer.render(chat("a")) == "<sa>"
    assert renderer.num_starts == 2


async def test_a_cancelled_question_leaves_the_others_in_order(renderer: TemplateRenderer) -> None:
    first, second = (asyncio.create_task(renderer.render(chat(text))) for text in "ab")
    await asyncio.sleep(0)
    first.cancel()
    assert await second == "<sb>"


async def test_who_finds_too_many_waiting_is_refused(
    renderer: TemplateRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_renderer, "_MAX_WAITING", 3)
    texts = ["a", "b", "c", "d"]
    asked = [asyncio.create_task(renderer.render(chat(text))) for text in texts]
    outcomes = await asyncio.gather(*asked, return_exceptions=True)

    assert outcomes[:3] == ["<sa>", "<sb>", "<sc>"]
    assert isinstance(outcomes[3], EngineOverloaded)
    assert await renderer.render(chat("e")) == "<se>"


async def test_a_stopped_renderer_says_so() -> None:
    renderer = TemplateRenderer(ChatTemplate({"default": TEMPLATE}))
    await renderer.start()
    await renderer.stop()
    with pytest.raises(EngineUnavailable):
        await renderer.render(chat("a"))
