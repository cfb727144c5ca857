"""How one chat request uses tools: which it may call, whether it must, and how calls are read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llguidance import LLMatcher

from multiflora.engine.errors import RequestRejected
from multiflora.engine.text.grammar import quoted
from multiflora.engine.text.tokenizer import Tokenizer
from multiflora.engine.text.tool_calls.call import CallReader, CallSyntax, Function
from multiflora.engine.text.tool_calls.family import call_syntax

from .schemas.chat import ChatBody
from .schemas.structure import Structure
from .schemas.tool import NamedTool


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """``functions`` are those that may be called; one of them must be if ``is_forced``."""

    syntax: CallSyntax
    functions: list[Function]
    is_forced: bool
    is_parallel: bool

    def reader(self) -> CallReader:
        return self.syntax.reader(max_calls=None if self.is_parallel else 1)

    def structure(self, tokenizer: Tokenizer) -> Structure | None:
        """The grammar of a forced call."""
        return Structure("tools", lambda: self._grammar(tokenizer)) if self.is_forced else None

    def _grammar(self, tokenizer: Tokenizer) -> str:
        literal = _literal(tokenizer)
        lark = self.syntax.grammar(self.functions, literal, is_parallel=self.is_parallel)
        return LLMatcher.grammar_from_lark(lark)


def tool_use(tokenizer: Tokenizer, body: ChatBody) -> ToolUse | None:
    """What ``body`` asks for; None if no tool may be called. Raises ``RequestRejected``."""
    choice = body.tool_choice
    if not body.tools:
        if choice not in ("none", "auto"):
            raise RequestRejected("tool_choice needs tools", param="tool_choice")
        return None
    if choice == "none":
        return None
    if body.structure() is not None:
        raise RequestRejected(
            "an answer of a given form cannot call tools; set tool_choice to none",
            param="tool_choice",
        )
    syntax = call_syntax(tokenizer.folder.chat_templates)
    if syntax is None:
        raise RequestRejected("this base's chat template knows no tools", param="tools")
    functions = [Function(tool.function.name, tool.function.parameters) for tool in body.tools]
    if isinstance(choice, NamedTool):
        functions = _named(functions, choice.function.name)
    return ToolUse(
        syntax=syntax,
        functions=functions,
        is_forced=choice != "auto",
        is_parallel=body.parallel_tool_calls and not isinstance(choice, NamedTool),
    )


def template_tools(body: ChatBody) -> list[dict[str, Any]]:
    """The tools as chat templates know them; none where none may be called."""
    if body.tool_choice == "none":
        return []
    return [tool.model_dump(exclude_none=True) for tool in body.tools]


def _named(functions: list[Function], name: str) -> list[Function]:
    found = [function for function in functions if function.name == name]
    if not found:
        raise RequestRejected(f"no tool is named {name[:64]!r}", param="tool_choice.function.name")
    return found


def _literal(tokenizer: Tokenizer) -> Callable[[str], str]:
    """Text of the template; a grammar names special tokens by their ids."""

    def write(text: str) -> str:
        token = tokenizer.token_id(text)
        return f"<[{token}]>" if token in tokenizer.special_ids else quoted(text)

    return write
