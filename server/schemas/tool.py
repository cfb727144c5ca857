"""Tools that a model may call, as OpenAI's API describes them."""

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_TOOLS: Final = 128


class FunctionBody(BaseModel):
    """``parameters`` is a JSON schema; ``strict`` changes nothing for required and named calls."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] = Field({})
    strict: bool | None = None


class ToolBody(BaseModel):
    """A function; there are no other tools."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    type: Literal["function"]
    function: FunctionBody


class FunctionName(BaseModel):
    """Which function."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    name: str


class NamedTool(BaseModel):
    """A choice that leaves none."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    type: Literal["function"]
    function: FunctionName


ToolChoice = Literal["none", "auto", "required"] | NamedTool
