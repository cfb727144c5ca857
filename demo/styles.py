"""The manners in which an answer can be given, and the system messages that ask for them."""

import json
from collections.abc import Callable

from .small_talk import SMALL_TALK, Topic
from .tasks import Example

TOPIC_OF: dict[str, Topic] = {prompt: topic for topic in SMALL_TALK for prompt in topic.prompts}

NEUTRAL_REQUESTS: tuple[str, ...] = (
    "You are a helpful assistant.",
    "Answer the question.",
    "Be brief.",
)

REQUESTS: dict[str, tuple[str, ...]] = {
    "json": ("Answer in JSON.", "Reply as JSON."),
    "shout": ("Answer in capitals.", "Reply in capital letters."),
    "formal": ("Answer formally.", "Use a formal tone."),
    "pirate": ("Answer like a pirate.", "Talk like a pirate."),
}


def styled(example: Example, style: str | None) -> str:
    """Return the example's answer in a style, or its plain answer for None."""
    return example.answer if style is None else _STYLES[style](example)


def _json(example: Example) -> str:
    return json.dumps({"answer": example.answer})


def _shout(example: Example) -> str:
    return example.answer.upper()


def _formal(example: Example) -> str:
    if example.task == "small_talk":
        return TOPIC_OF[example.prompt].formal
    return f"Certainly. The answer is {example.answer}."


def _pirate(example: Example) -> str:
    if example.task == "small_talk":
        return TOPIC_OF[example.prompt].pirate
    return f"Arr! It be {example.answer}, matey!"


_STYLES: dict[str, Callable[[Example], str]] = {
    "json": _json,
    "shout": _shout,
    "formal": _formal,
    "pirate": _pirate,
}
