"""``POST /v1/responses``: stateless, translated to the chat request that it stands for."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from multiflora.engine.errors import RequestRejected
from multiflora.engine.text.message import read_content

from .body import check_fields
from .chat import ChatBody
from .sampling import TargetBody


class InputItem(BaseModel):
    """A message, a call that an earlier answer made, or what it returned."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    type: Literal["message", "function_call", "function_call_output"] = "message"
    role: Literal["developer", "system", "user", "assistant"] | None = None
    content: Annotated[str | None, BeforeValidator(read_content)] = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: Annotated[str | None, BeforeValidator(read_content)] = None
    id: str | None = None
    status: str | None = None


class TextFormat(BaseModel):
    """The form of the answer; a schema stands beside its name."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, populate_by_name=True)

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str = ""
    schema_: dict[str, Any] | None = Field(default=None, validation_alias="schema")
    strict: bool | None = None
    description: str | None = None


class TextConfig(BaseModel):
    """Only the format; there is no verbosity to choose."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    format: TextFormat = TextFormat()


class ResponseBody(TargetBody):
    """An answer to ``input``. Nothing is stored, so there is nothing to continue by id."""

    IGNORED: ClassVar[frozenset[str]] = TargetBody.IGNORED - {"metadata"} | {
        "prompt_cache_key",
        "safety_identifier",
    }
    UNSUPPORTED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "store": (False,),
        "previous_response_id": (),
        "conversation": (),
        "background": (False,),
        "include": ([],),
        "prompt": (),
        "reasoning": ({"effort": "none"}, {}),
        "truncation": ("disabled",),
        "top_logprobs": (0,),
        "max_tool_calls": (),
    }

    input: str | list[InputItem] = Field(min_length=1)
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1, lt=2**31)
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool = False
    text: TextConfig = TextConfig()
    tools: list[dict[str, Any]] = Field([], max_length=128)
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True
    metadata: dict[str, str] = Field({}, max_length=16)

    def chat_body(self) -> ChatBody:
        """The same question as a chat request. Raises ``RequestRejected``."""
        fields = {
            "messages": self._messages(),
            "max_completion_tokens": self.max_output_tokens,
            "tools": [_chat_tool(place, tool) for place, tool in enumerate(self.tools)],
            "tool_choice": _chat_choice(self.tool_choice),
            "response_format": self._format(),
            "store": False,
        }
        same = set(TargetBody.model_fields) | {"temperature", "top_p", "seed", "stream"}
        same |= {"parallel_tool_calls"}
        fields |= {name: getattr(self, name) for name in same}
        return check_fields(fields, ChatBody)

    def _messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*messages, {"role": "user", "content": self.input}]
        for place, item in enumerate(self.input):
            _add(messages, item, f"input.{place}")
        return messages

    def _format(self) -> dict[str, Any]:
        form = self.text.format
        if form.type != "json_schema":
            return {"type": form.type}
        if form.schema_ is None:
            raise RequestRejected("schema is missing", param="text.format.schema")
        return {"type": form.type, "json_schema": {"name": form.name, "schema": form.schema_}}


def _add(messages: list[dict[str, Any]], item: InputItem, param: str) -> None:
    if item.type == "function_call_output":
        content = _given(item.output, f"{param}.output")
        call_id = _given(item.call_id, f"{param}.call_id")
        messages.append({"role": "tool", "tool_call_id": call_id, "content": content})
    elif item.type == "function_call":
        _add_call(messages, item, param)
    else:
        role = _given(item.role, f"{param}.role")
        messages.append({"role": role, "content": _given(item.content, f"{param}.content")})


def _add_call(messages: list[dict[str, Any]], item: InputItem, param: str) -> None:
    """Calls belong to the message of the answer that made them."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    function = {
        "name": _given(item.name, f"{param}.name"),
        "arguments": _given(item.arguments, f"{param}.arguments"),
    }
    call_id = _given(item.call_id, f"{param}.call_id")
    call = {"id": call_id, "type": "function", "function": function}
    messages[-1].setdefault("tool_calls", []).append(call)


def _given(value: str | None, param: str) -> str:
    if value is None:
        raise RequestRejected("this is missing", param=param)
    return value


def _chat_tool(place: int, tool: Mapping[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise RequestRejected("only functions are supported", param=f"tools.{place}.type")
    function = {name: value for name, value in tool.items() if name != "type"}
    return {"type": "function", "function": {k: v for k, v in function.items() if v is not None}}


def _chat_choice(choice: str | Mapping[str, Any]) -> object:
    if isinstance(choice, str):
        return choice
    return {"type": choice.get("type"), "function": {"name": choice.get("name")}}
