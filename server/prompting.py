"""Prompts as token ids."""

from collections.abc import Sequence

from multiflora.engine.errors import PromptTooLong, RequestRejected
from multiflora.engine.text.template_renderer import Renderer
from multiflora.engine.text.tokenizer import Tokenizer

from .schemas.chat import ChatBody
from .schemas.completion import Prompt
from .service import off_loop


async def tokenize_prompts(
    tokenizer: Tokenizer, prompts: Sequence[Prompt], *, is_large: bool, max_model_len: int
) -> list[Sequence[int]]:
    """Encode texts as the tokenizer's post-processor says; ids stay as given, no BOS is added."""
    return await off_loop(
        is_large, _tokenize_prompts, tokenizer, prompts, max_model_len=max_model_len
    )


def _tokenize_prompts(
    tokenizer: Tokenizer, prompts: Sequence[Prompt], *, max_model_len: int
) -> list[Sequence[int]]:
    tokens: list[Sequence[int]] = []
    for prompt in prompts:
        if isinstance(prompt, str):
            _check_length(tokenizer, prompt, max_model_len=max_model_len, param="prompt")
            tokens.append(tokenizer.encode(prompt))
        else:
            tokens.append(prompt)
    return tokens


async def tokenize_chat(
    tokenizer: Tokenizer, renderer: Renderer, body: ChatBody, *, is_large: bool, max_model_len: int
) -> list[Sequence[int]]:
    """Render a conversation and encode it, a large one in a thread.

    The template writes BOS where the model wants one. Special tokens in what users wrote are
    ordinary text, so that no message can begin another turn.
    """
    try:
        text = await renderer.render(
            tokenizer.quote([message.for_template() for message in body.messages]),
            documents=tokenizer.quote(body.documents),
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            extra=tokenizer.quote(body.chat_template_kwargs),
        )
    except RecursionError:
        raise RequestRejected("the messages are nested too deeply", param="messages") from None
    _check_length(tokenizer, text, max_model_len=max_model_len, param="messages")
    return [await off_loop(is_large, tokenizer.encode_chat, text)]


def _check_length(tokenizer: Tokenizer, text: str, *, max_model_len: int, param: str) -> None:
    """Refuse what cannot fit before seconds are spent on encoding it."""
    least = len(text) // tokenizer.longest_token_chars
    if least > max_model_len:
        raise PromptTooLong(
            f"the context holds {max_model_len} tokens, but the prompt has at least {least}",
            param=param,
        )
