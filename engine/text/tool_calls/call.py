"""Calls of tools as they are read from an answer, piece by piece."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Function:
    """A tool that may be called; ``parameters`` is a JSON schema."""

    name: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A piece of the arguments of call ``index``; the first also has its id and name."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


@dataclass(slots=True)
class Reading:
    """What some text turned out to be."""

    content: str = ""
    calls: list[CallDelta] = field(default_factory=list)


class CallReader(Protocol):
    """Tells calls from content in the text of one answer."""

    def push(self, text: str) -> Reading: ...

    def finish(self) -> Reading:
        """The answer is over: what was held back is content after all."""
        ...


class CallSyntax(Protocol):
    """How the chat template of one family writes calls."""

    def reader(self, *, max_calls: int | None = None) -> CallReader:
        """One for each answer; calls beyond ``max_calls`` are left out."""
        ...

    def grammar(
        self, functions: list[Function], literal: Callable[[str], str], *, is_parallel: bool
    ) -> str:
        """A Lark grammar of one call or, if ``is_parallel``, of several.

        ``literal`` writes text of the template, which may be one special token.
        """
        ...
