"""``POST /v1/chat/completions``."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from multiflora.engine.text.message import read_content, template_message

from .sampling import SamplingBody

MAX_MESSAGES: Final = 4096


class ChatMessage(BaseModel):
    """One turn. Fields of answers that clients send back unchanged are accepted."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    role: Literal["developer", "system", "user", "assistant", "tool"]
    content: Annotated[str | None, BeforeValidator(read_content)] = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None

    @model_validator(mode="after")
    def _has_content(self) -> "ChatMessage":
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("the message has no content")
        return self

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates know it."""
        return template_message(self.model_dump(exclude_none=True))


class ChatBody(SamplingBody):
    """A conversation to answer."""

    IGNORED: ClassVar[frozenset[str]] = SamplingBody.IGNORED | {
        "parallel_tool_calls",
        "prompt_cache_key",
        "safety_identifier",
    }
    UNSUPPORTED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **SamplingBody.UNSUPPORTED,
        "logprobs": (False,),
        "top_logprobs": (0,),
        "prompt_logprobs": (),
        "best_of": (),
        "echo": (False,),
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "reasoning_effort": ("none",),
        "verbosity": ("medium",),
        "web_search_options": (),
        "chat_template": (),
    }

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    documents: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] = Field({})

    @field_validator("continue_final_message")
    @classmethod
    def _continues_or_answers(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("add_generation_prompt"):
            raise ValueError(
                "this needs add_generation_prompt=false: a message is either continued or answered"
            )
        return value
