"""Keys that are equal for equal rows, in 8 bytes each: to find duplicates in a large file."""

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from typing import Final

from .row import Row

# Within a word, signs matter: 3.5 is not 35, and 3 + 4 is not 3 - 4.
_AROUND_WORDS: Final = ".,;:!?\"'`()[]*_#"
_SPACE: Final = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class RowKey:
    """``near`` and ``prompt`` ignore case, white space and the punctuation around words."""

    exact: int
    near: int
    prompt: int


def row_key(row: Row) -> RowKey:
    prompt = normalised(row.prompt)
    near = "\0".join([prompt, *map(normalised, row.texts)])
    return RowKey(digest(row.identity), digest(near), digest(prompt))


def normalised(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = (word.strip(_AROUND_WORDS) for word in _SPACE.split(folded))
    return " ".join(filter(None, words))


def digest(text: str) -> int:
    """64 bits of a hash, the same in every process."""
    found = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(found, "little")
