"""Keeps special tokens that users write from acting as special tokens.

User text is marked before the chat template sees it, so that after rendering the template's own
special tokens can be told from quoted ones. The idea and the marks are those of transformers'
``sanitize_control_tokens``.
"""

import re
from collections.abc import Collection, Iterator
from typing import Any, Final

_OPEN: Final = "\U000f0000"
_CLOSE: Final = "\U000f0001"


class Quotation:
    """Marks special tokens in user data, and finds the marks in rendered text."""

    def __init__(self, tokens: Collection[str]) -> None:
        # Longest first: a token wins over the tokens that it contains.
        longest_first = sorted(filter(None, tokens), key=len, reverse=True)
        either = "|".join(map(re.escape, longest_first)) or "(?!)"
        self._token = re.compile(either)
        self._marked = re.compile(f"{_OPEN}({either}){_CLOSE}|[{_OPEN}{_CLOSE}]")

    def quote(self, data: Any) -> Any:
        """A copy of JSON data with every special token in its strings marked."""
        if isinstance(data, str):
            # Marks that users write themselves must not forge anything.
            plain = data.replace(_OPEN, "").replace(_CLOSE, "")
            return self._token.sub(f"{_OPEN}\\g<0>{_CLOSE}", plain)
        if isinstance(data, dict):
            return {self.quote(key): self.quote(value) for key, value in data.items()}
        if isinstance(data, list):
            return [self.quote(value) for value in data]
        return data

    def split(self, text: str) -> Iterator[tuple[str, bool]]:
        """The pieces of rendered text in order, each with whether it is quoted."""
        start = 0
        for match in self._marked.finditer(text):
            yield text[start : match.start()], False
            yield match[1] or "", True
            start = match.end()
        yield text[start:], False
