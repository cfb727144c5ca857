"""The form that an answer must have, in each of the ways in which clients say it."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from multiflora.engine.errors import RequestRejected
from multiflora.engine.text.grammar import (
    choice_grammar,
    json_grammar,
    regex_grammar,
    text_grammar,
)

_ANY_OBJECT = {"type": "object"}
JsonSchema = dict[str, Any] | str


class Structure(NamedTuple):
    """``build`` makes the grammar, or raises; ``param`` is the field that asked for it."""

    param: str
    build: Callable[[], str]


class SchemaFormat(BaseModel):
    """A named schema; it is always followed strictly."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, populate_by_name=True)

    name: str = Field("", max_length=64)
    description: str | None = None
    schema_: dict[str, Any] = Field({}, alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """OpenAI's ``response_format``."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None

    def structure(self, param: str) -> Structure | None:
        if self.type == "text":
            return None
        if self.type == "json_object":
            return Structure(param, partial(json_grammar, _ANY_OBJECT))
        if self.json_schema is None:
            raise RequestRejected("json_schema is missing", param=f"{param}.json_schema")
        return Structure(param, partial(json_grammar, self.json_schema.schema_))


class StructuredOutputs(BaseModel):
    """vLLM's ``structured_outputs``: one of the constraints."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, populate_by_name=True)

    json_: JsonSchema | None = Field(None, alias="json")
    json_object: bool = False
    regex: str | None = None
    choice: Annotated[list[str], Field(max_length=5000)] | None = None
    grammar: str | None = None
    structural_tag: Any = None

    def structures(self, param: str) -> list[Structure]:
        if self.structural_tag is not None:
            raise RequestRejected(
                "structural tags are not supported; use tools or a grammar",
                param=f"{param}.structural_tag",
            )
        found = constraints(
            f"{param}.", json=self.json_, regex=self.regex, choice=self.choice, grammar=self.grammar
        )
        if self.json_object:
            found.append(Structure(f"{param}.json_object", partial(json_grammar, _ANY_OBJECT)))
        return found


def constraints(
    prefix: str,
    *,
    json: JsonSchema | None,
    regex: str | None,
    choice: list[str] | None,
    grammar: str | None,
) -> list[Structure]:
    """Those that are given, each under ``prefix`` and its name."""
    found = []
    if json is not None:
        found.append(Structure(f"{prefix}json", partial(json_grammar, json)))
    if regex is not None:
        found.append(Structure(f"{prefix}regex", partial(regex_grammar, regex)))
    if choice is not None:
        found.append(Structure(f"{prefix}choice", partial(choice_grammar, choice)))
    if grammar is not None:
        found.append(Structure(f"{prefix}grammar", partial(text_grammar, grammar)))
    return found
