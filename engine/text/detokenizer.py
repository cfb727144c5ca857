"""Token ids to text, a token at a time."""

from collections.abc import Sequence
from typing import Final, Protocol

_INCOMPLETE: Final = "\ufffd"
# A UTF-8 character has at most four bytes and a token at least one: a longer tail that still ends
# in a replacement character is not a character that waits for its last byte.
_MAX_PENDING: Final = 8
_MAX_CHARACTER_TOKENS: Final = 4


class Decoder(Protocol):
    """The part of a tokenizer that is needed here."""

    @property
    def special_ids(self) -> frozenset[int]: ...

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...


class Detokenizer:
    """Gives out text as soon as it is settled; the pieces joined are the decoded whole.

    A window of recent tokens is decoded with each new one, since a token's text can depend on its
    neighbours: leading spaces are stripped at a beginning only, and a character may be spread over
    several tokens. The window holds the tokens that gave the last piece and the pending ones, so
    the cost of a token does not grow with the answer. Special tokens give no text unless
    ``skip_special_tokens`` is off.
    """

    def __init__(self, decoder: Decoder, *, skip_special_tokens: bool = True) -> None:
        self._decoder = decoder
        self._skips = skip_special_tokens
        self._silent = decoder.special_ids if skip_special_tokens else frozenset()
        self._context: list[int] = []
        self._pending: list[int] = []
        self._seen = ""  # the part of the window's text that was given out

    def push(self, token: int) -> str:
        """Take one token; return the text that it settles, which may be empty."""
        if token in self._silent:
            return ""
        self._pending.append(token)
        text = self._decode(self._context + self._pending)
        if text.endswith(_INCOMPLETE):
            return self._give_up(text) if len(self._pending) >= _MAX_PENDING else ""
        if len(text) <= len(self._seen):
            return ""
        return self._settle(text)

    def finish(self) -> str:
        """Return what is left; an unfinished character becomes a replacement character."""
        if not self._pending:
            return ""
        return self._settle(self._decode(self._context + self._pending))

    def _decode(self, tokens: Sequence[int]) -> str:
        return self._decoder.decode(tokens, skip_special_tokens=self._skips)

    def _settle(self, text: str) -> str:
        delta = self._new_part(text)
        self._context, self._pending = self._pending, []
        self._seen = self._decode(self._context)
        return delta

    def _give_up(self, text: str) -> str:
        """Settle all but the last character of a tail of invalid bytes."""
        delta = self._new_part(text[:-1])
        self._context, self._pending = [], self._pending[-_MAX_CHARACTER_TOKENS:]
        self._seen = self._decode(self._pending)[:-1]
        return delta

    def _new_part(self, text: str) -> str:
        if text.startswith(self._seen):
            return text[len(self._seen) :]
        # Byte-fallback decoders spoil a whole run of bytes, given-out characters included, when an
        # invalid byte follows.
        return self._decode(self._pending)
