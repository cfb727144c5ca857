"""``POST /tokenize`` and ``POST /detokenize``, as vLLM shapes them."""

from typing import Annotated, Any, Final

from pydantic import ConfigDict, Field

from .body import RequestBody, check_fields
from .chat import ChatBody, ChatMessage
from .sampling import TokenId
from .tool import ToolBody

# No context bounds these.
MOST_CHARS: Final = 1_000_000
_MOST_TOKENS: Final = 1_000_000


class TokenizeBody(RequestBody):
    """A text or a conversation."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    prompt: str | None = Field(None, max_length=MOST_CHARS)
    messages: list[ChatMessage] | None = Field(None, min_length=1)
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] = Field({})
    tools: list[ToolBody] = Field([])
    return_token_strs: bool = False

    def conversation(self, messages: list[ChatMessage]) -> ChatBody:
        """The chat request that would be rendered to the same tokens.

        Raises ``RequestRejected`` where that would be refused.
        """
        fields = {
            "model": self.model or "",
            "messages": messages,
            "add_generation_prompt": self.add_generation_prompt,
            "continue_final_message": self.continue_final_message,
            "chat_template_kwargs": self.chat_template_kwargs,
            "tools": self.tools,
        }
        return check_fields(fields, ChatBody)


class DetokenizeBody(RequestBody):
    """Tokens to be turned back into text."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    tokens: Annotated[list[TokenId], Field(max_length=_MOST_TOKENS)]
