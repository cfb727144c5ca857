"""Llama 3: the answer is the call, as a bare object."""

from collections.abc import Callable
from dataclasses import dataclass

from .call import CallReader, Function
from .grammar import choice_of_objects
from .marked_reader import MarkedReader

_OPENING = "<|python_tag|>"


@dataclass(frozen=True, slots=True)
class LlamaSyntax:
    """``{"name": ..., "parameters": {...}}``, perhaps after a tag; several with semicolons."""

    def reader(self, *, max_calls: int | None = None) -> CallReader:
        return MarkedReader(_OPENING, "", separators=";,", begins_inside=True, max_calls=max_calls)

    def grammar(
        self, functions: list[Function], literal: Callable[[str], str], *, is_parallel: bool
    ) -> str:
        others = ' ("; " object)*' if is_parallel else ""
        return f"start: object{others}\n{choice_of_objects(functions, word='parameters')}"
