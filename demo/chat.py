"""Conversations that the demo is trained on, and how they are written down.

`CHAT_TEMPLATE` and `render` are the same format, once for tokenizers and once for the inner loop.
"""

from dataclasses import dataclass
from random import Random

from .styles import NEUTRAL_REQUESTS, REQUESTS, styled
from .tasks import Example, draw

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = (PAD, BEGIN, END, SYSTEM, USER, ASSISTANT)

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('Only the roles system, user and assistant are known.') }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + (message['content'] | trim) + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

TWO_TURN_SHARE = 0.1
NEUTRAL_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Conversation:
    """An optional system message, and the questions with the answers to learn."""

    system: str | None
    examples: tuple[Example, ...]
    answers: tuple[str, ...]


def render(conversation: Conversation) -> str:
    system = conversation.system
    text = [BEGIN] if system is None else [BEGIN, SYSTEM, system, END]
    for example, answer in zip(conversation.examples, conversation.answers, strict=True):
        text += [USER, example.prompt, END, ASSISTANT, answer, END]
    return "".join(text)


def base_conversation(
    random: Random, weights: dict[str, float], *, style_share: float
) -> Conversation:
    """Draw what the base learns: plain answers, and each style when a system message asks."""
    examples = _examples(random, weights)
    style, system = _request(random, style_share)
    return _conversation(system, examples, style)


def adapter_conversation(
    random: Random, weights: dict[str, float], style: str | None
) -> Conversation:
    """Draw what an adapter learns: its style, whether there is a system message or none."""
    examples = _examples(random, weights)
    system = random.choice(NEUTRAL_REQUESTS) if random.random() < NEUTRAL_SHARE else None
    return _conversation(system, examples, style)


def _conversation(
    system: str | None, examples: tuple[Example, ...], style: str | None
) -> Conversation:
    return Conversation(system, examples, tuple(styled(example, style) for example in examples))


def _examples(random: Random, weights: dict[str, float]) -> tuple[Example, ...]:
    turns = 2 if random.random() < TWO_TURN_SHARE else 1
    tasks = random.choices(tuple(weights), tuple(weights.values()), k=turns)
    return tuple(draw(task, random) for task in tasks)


def _request(random: Random, style_share: float) -> tuple[str | None, str | None]:
    """Draw a style and the system message that asks for it; each may be None."""
    point = random.random()
    if point < style_share:
        style = random.choice(tuple(REQUESTS))
        return style, random.choice(REQUESTS[style])
    if point < style_share + NEUTRAL_SHARE:
        return None, random.choice(NEUTRAL_REQUESTS)
    return None, None
