"""``POST /v1/completions``."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, TypeAlias

from pydantic import Field, PlainValidator, WithJsonSchema

from .sampling import SamplingBody, TopLogprobs

Prompt: TypeAlias = str | tuple[int, ...]

PROMPT_SCHEMA: Final = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
        {"type": "array", "items": {"type": "integer"}},
        {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
    ]
}


def read_prompts(value: object) -> tuple[Prompt, ...]:
    """All four forms of a prompt as a list of prompts.

    By hand: pydantic would report every token of a wrong list once for each form.
    """
    if isinstance(value, str):
        prompts: tuple[Prompt, ...] = (value,)
    elif isinstance(value, list) and value and isinstance(value[0], str | list):
        prompts = tuple(_read_prompt(item) for item in value)
    else:
        prompts = (_read_tokens(value),)
    if not prompts or not all(prompts):
        raise ValueError("the prompt is empty; give it at least one character or token")
    return prompts


def _read_prompt(value: object) -> Prompt:
    return value if isinstance(value, str) else _read_tokens(value)


def _read_tokens(value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise ValueError("a prompt is a string, a list of strings, token ids or lists of token ids")
    for place, token in enumerate(value):
        if type(token) is not int:
            raise ValueError(
                f"a prompt is a string, a list of strings, token ids or lists of token ids; "
                f"element {place} is a {type(token).__name__}"
            )
    return tuple(value)


class CompletionBody(SamplingBody):
    """A text or token prompt to continue."""

    IGNORED: ClassVar[frozenset[str]] = SamplingBody.IGNORED
    UNSUPPORTED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **SamplingBody.UNSUPPORTED,
        "prompt_logprobs": (),
        "suffix": ("",),
        "add_special_tokens": (True,),
    }

    prompt: Annotated[
        tuple[Prompt, ...], PlainValidator(read_prompts), WithJsonSchema(PROMPT_SCHEMA)
    ]
    max_tokens: int | None = Field(None, ge=0, lt=2**31)
    logprobs: TopLogprobs | None = None
    echo: bool = False

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def num_prompt_logprobs(self) -> int | None:
        return self.logprobs if self.echo else None
