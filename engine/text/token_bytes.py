"""What single tokens stand for, as bytes: decoding one alone would lose its leading space."""

import re
from typing import Final

from tokenizers import Tokenizer as FastTokenizer

_SPACE: Final = "\u2581"
_BYTE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """Bytes by token id, for byte-level and for sentencepiece-like vocabularies."""

    def __init__(self, fast: FastTokenizer) -> None:
        self._fast = fast
        self._added = {n: t.content for n, t in fast.get_added_tokens_decoder().items()}
        self._bytes = byte_letters() if "ByteLevel" in str(fast.decoder) else None

    def __getitem__(self, token: int) -> bytes:
        """Nothing for an id that the tokenizer does not know: embeddings are padded with such."""
        if (content := self._added.get(token)) is not None:
            return content.encode()
        piece = self._fast.id_to_token(token) or ""
        if self._bytes is not None:
            letters = self._bytes
            return b"".join(letters.get(char) or char.encode() for char in piece)
        if match := _BYTE.fullmatch(piece):
            return bytes([int(match[1], 16)])
        return piece.replace(_SPACE, " ").encode()


def byte_letters() -> dict[str, bytes]:
    """The letters by which GPT-2's byte-level vocabularies write bytes: printable Latin-1
    characters stand for themselves, all other bytes for characters from U+0100 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(byte): bytes([byte]) for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    return letters | {chr(0x100 + place): bytes([byte]) for place, byte in enumerate(others)}


def token_text(content: bytes) -> str:
    """``content`` as text; a part of a character as OpenAI's API does, ``bytes:\\xe2\\x98``."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def num_characters(content: bytes) -> int:
    """Characters that begin in ``content``."""
    return sum(byte & 0xC0 != 0x80 for byte in content)
