"""Mistral: a list of objects after a token or, since version 11, names with their arguments."""

import json
import secrets
import string
from collections.abc import Callable
from dataclasses import dataclass

from ..grammar import quoted
from .call import CallReader, Function
from .grammar import choice_of_objects, named_rules
from .marked_reader import MarkedReader

_OPENING = "[TOOL_CALLS]"
_ARGUMENTS = "[ARGS]"
_MAX_NAME_CHARS = 128
_LETTERS = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class MistralSyntax:
    """``[TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]``.

    With ``has_arguments_token`` it is ``[TOOL_CALLS]name[ARGS]{...}`` for each call.
    """

    has_arguments_token: bool = False

    def reader(self, *, max_calls: int | None = None) -> CallReader:
        return _MistralReader(
            _OPENING, "]", separators="[,", max_calls=max_calls, make_id=_short_id
        )

    def grammar(
        self, functions: list[Function], literal: Callable[[str], str], *, is_parallel: bool
    ) -> str:
        if self.has_arguments_token:
            mark, others = literal(_ARGUMENTS), " call*" if is_parallel else ""
            named = named_rules(functions, lambda name, rule: f"{quoted(name)} {mark} {rule}")
            return f"start: call{others}\ncall: {literal(_OPENING)} named\nnamed: {named}"
        others = ' (", " object)*' if is_parallel else ""
        start = f'start: {literal(_OPENING)} " [" object{others} "]"'
        return f"{start}\n{choice_of_objects(functions, word='arguments')}"


def _short_id() -> str:
    """Mistral's templates refuse other ids than nine letters and digits."""
    return "".join(secrets.choice(_LETTERS) for _ in range(9))


class _MistralReader(MarkedReader):
    """Also reads names that stand before their arguments."""

    def _read_other(self, held: str) -> bool:
        name, mark, rest = held.partition(_ARGUMENTS)
        rest = rest.lstrip()
        if len(name) > _MAX_NAME_CHARS or (mark and rest[:1] not in ("", "{")):
            return super()._read_other(held)
        if not rest:
            return False
        self._begin(rest, before=f'{{"name":{json.dumps(name.strip())},"arguments":')
        return True
