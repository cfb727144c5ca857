"""What a request asked, in the form in which training files have it."""

from collections.abc import Sequence
from typing import Final

from multiflora.engine.training.feedback.completion import Prompt

from .schemas.chat import ChatBody
from .schemas.completion import CompletionBody
from .schemas.sampling import SamplingBody

# Of what training files can say; tools they cannot.
_FIELDS: Final = frozenset({"role", "content", "name", "reasoning_content"})


def kept_prompts(body: SamplingBody) -> Sequence[Prompt] | None:
    """One per prompt of the request; None where a training file could not repeat it."""
    match body:
        case ChatBody():
            return _conversation(body)
        case CompletionBody():
            texts = [prompt for prompt in body.prompt if isinstance(prompt, str)]
            return texts if len(texts) == len(body.prompt) and all(texts) else None
        case _:
            return None


def _conversation(body: ChatBody) -> Sequence[Prompt] | None:
    messages = [message.for_template() for message in body.messages]
    extras = (body.documents, body.chat_template_kwargs, body.tools)
    is_plain = body.add_generation_prompt and not any(extras)
    is_readable = all(
        message["role"] != "tool" and {name for name, value in message.items() if value} <= _FIELDS
        for message in messages
    )
    if not is_plain or not is_readable or messages[-1]["role"] == "assistant":
        return None
    return [messages]
