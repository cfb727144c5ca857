"""Reads a call written as a JSON object, character by character."""

import json
from typing import Final

_NAMES: Final = frozenset({"name"})
_ARGUMENTS: Final = frozenset({"arguments", "parameters"})
_OTHERS: Final = frozenset({"id", "type"})


class CallObject:
    """``{"name": "f", "arguments": {...}}``; ``parameters`` is another word for arguments.

    ``feed`` gives the text of the arguments out as soon as the name is known. ``is_broken`` if the
    object cannot be a call.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.raw = ""
        self.is_done = False
        self.is_broken = False
        self.depth = 0
        self._in_string = False
        self._is_escaped = False
        self._key: str | None = None
        self._part = ""
        self._waiting = ""

    def feed(self, char: str) -> str:
        """Take one character; return the text of the arguments that it settles."""
        self.raw += char
        if self._in_string:
            self._read_string(char)
            return self._keep(char)
        if char == '"':
            self._in_string = True
            return self._keep(char)
        return self._structure(char)

    def _read_string(self, char: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif char == "\\":
            self._is_escaped = True
        elif char == '"':
            self._in_string = False

    def _structure(self, char: str) -> str:
        if char in "{[":
            self.depth += 1
            return "" if self.depth == 1 else self._keep(char)
        if char in "}]":
            self.depth -= 1
            if self.depth > 0:
                return self._keep(char)
            self.is_done = True
            return self._end_value()
        if self.depth > 1 or char not in ":, \t\r\n":
            return self._keep(char)
        if char == ":":
            self._begin_value()
        return self._end_value() if char == "," else ""

    def _begin_value(self) -> None:
        self._key = self._loads(self._part)
        self._part = ""
        if self._key not in _NAMES | _ARGUMENTS | _OTHERS:
            self.is_broken = True

    def _keep(self, char: str) -> str:
        self._part += char
        if self._key in _ARGUMENTS and not self._part.startswith('"'):
            return self._give_out(char)
        return ""

    def _end_value(self) -> str:
        key, part = self._key, self._part
        self._key, self._part = None, ""
        if key in _NAMES:
            self.name = self._loads(part)
            waiting, self._waiting = self._waiting, ""
            return waiting
        if key in _ARGUMENTS and part.startswith('"'):
            # Some models write the arguments as OpenAI's API does: JSON inside a string.
            return self._give_out(self._loads(part) or "")
        return ""

    def _give_out(self, text: str) -> str:
        if self.name is not None:
            return text
        self._waiting += text
        return ""

    def _loads(self, part: str) -> str | None:
        try:
            value = json.loads(part)
        except ValueError:
            value = None
        if isinstance(value, str):
            return value
        self.is_broken = True
        return None
