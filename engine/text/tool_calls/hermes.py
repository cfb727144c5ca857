"""Hermes and Qwen: one object between tags for each call."""

from collections.abc import Callable
from dataclasses import dataclass

from .call import CallReader, Function
from .grammar import choice_of_objects
from .marked_reader import MarkedReader

_OPENING = "<tool_call>"
_CLOSING = "</tool_call>"


@dataclass(frozen=True, slots=True)
class HermesSyntax:
    """``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``."""

    def reader(self, *, max_calls: int | None = None) -> CallReader:
        return MarkedReader(_OPENING, _CLOSING, max_calls=max_calls)

    def grammar(
        self, functions: list[Function], literal: Callable[[str], str], *, is_parallel: bool
    ) -> str:
        others = ' ("\\n" call)*' if is_parallel else ""
        tags = literal(_OPENING), literal(_CLOSING)
        call = f'call: {tags[0]} "\\n" object "\\n" {tags[1]}'
        return f"start: call{others}\n{call}\n{choice_of_objects(functions, word='arguments')}"
