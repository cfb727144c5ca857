"""Prompts as token ids."""

from collections.abc import Sequence
from typing import Any

from multiflora.engine.errors import PromptTooLong, RequestRejected
from multiflora.engine.text.template_renderer import Renderer
from multiflora.engine.text.tokenizer import Tokenizer

from .schemas.chat import ChatBody
from .schemas.completion import Prompt
from .text_work import TextWork
from .tool_use import template_tools


def tokenize_prompts(
    tokenizer: Tokenizer, prompts: Sequence[Prompt], *, max_model_len: int, last: int | None = None
) -> list[Sequence[int]]:
    """Encode texts as the tokenizer's post-processor says; ids stay as given, no BOS is added.

    Of each prompt the ``last`` tokens are kept, if that is given.
    """
    tokens: list[Sequence[int]] = []
    for prompt in prompts:
        if isinstance(prompt, str):
            if last is None:
                _check_length(tokenizer, prompt, max_model_len=max_model_len, param="prompt")
            tokens.append(tokenizer.encode(prompt))
        else:
            tokens.append(prompt)
    return [_last(prompt, last) for prompt in tokens]


async def tokenize_chat(
    work: TextWork,
    tokenizer: Tokenizer,
    body: ChatBody,
    *,
    renderer: Renderer,
    num_bytes: int,
    max_model_len: int | None = None,
    max_chars: int | None = None,
) -> list[Sequence[int]]:
    """Render a conversation that came in ``num_bytes``, and encode it within either bound.

    The template writes BOS where the model wants one. Special tokens in what users wrote are
    ordinary text, so that no message can begin another turn.
    """
    try:
        quoted = await work.run(num_bytes, _quoted, tokenizer, body)
        text = await renderer.render(
            **quoted,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
        )
    except RecursionError:
        raise RequestRejected("the messages are nested too deeply", param="messages") from None
    if max_chars is not None and len(text) > max_chars:
        raise RequestRejected(
            f"the rendered chat has {len(text)} characters; at most {max_chars} are encoded",
            param="messages",
        )
    if max_model_len is not None and body.truncate_prompt_tokens is None:
        _check_length(tokenizer, text, max_model_len=max_model_len, param="messages")
    tokens = await work.run(len(text), tokenizer.encode_chat, text)
    return [_last(tokens, body.truncate_prompt_tokens)]


def _quoted(tokenizer: Tokenizer, body: ChatBody) -> dict[str, Any]:
    """What clients wrote, for the template."""
    fields = {
        "messages": _messages(body),
        "tools": template_tools(body),
        "documents": body.documents,
        "extra": body.chat_template_kwargs,
    }
    return {name: tokenizer.quote(value) for name, value in fields.items()}


def _messages(body: ChatBody) -> list[dict[str, Any]]:
    messages = []
    for place, message in enumerate(body.messages):
        try:
            messages.append(message.for_template())
        except ValueError as error:
            raise RequestRejected(str(error), param=f"messages.{place}.tool_calls") from None
    return messages


def _last(tokens: Sequence[int], count: int | None) -> Sequence[int]:
    return tokens if count is None else tokens[-count:]


def _check_length(tokenizer: Tokenizer, text: str, *, max_model_len: int, param: str) -> None:
    """Refuse what cannot fit before seconds are spent on encoding it."""
    least = len(text) // tokenizer.longest_token_chars
    if least > max_model_len:
        raise PromptTooLong(
            f"the context holds {max_model_len} tokens, but the prompt has at least {least}",
            param=param,
        )
