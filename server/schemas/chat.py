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

from .sampling import SamplingBody, TopLogprobs
from .tool import MAX_TOOLS, ToolBody, ToolChoice

MAX_MESSAGES: Final = 4096


class ChatMessage(BaseModel):
    """One turn. Fields of answers that clients send back unchanged are accepted."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

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
        "prompt_cache_key",
        "safety_identifier",
    }
    UNSUPPORTED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **SamplingBody.UNSUPPORTED,
        "prompt_logprobs": (),
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
    logprobs: bool = False
    top_logprobs: TopLogprobs = 0
    tools: list[ToolBody] = Field([], max_length=MAX_TOOLS)
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    echo: bool = False
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

    @field_validator("top_logprobs")
    @classmethod
    def _has_logprobs(cls, value: int, info: ValidationInfo) -> int:
        if value and not info.data.get("logprobs"):
            raise ValueError("this needs logprobs=true")
        return value

    @property
    def begun(self) -> str:
        """The text of the assistant's message that the answer goes on with; empty without one."""
        last = self.messages[-1]
        return (last.content or "") if last.role == "assistant" else ""

    @property
    def num_logprobs(self) -> int | None:
        return self.top_logprobs if self.logprobs else None
