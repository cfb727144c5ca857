"""A version: immutable adapter weights named by their sha256, and where they came from."""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .error import UnknownVersion

_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Version:
    """What is known about a version. But for ``base`` it never changes once it is published.

    ``source`` says how it came to be, for people; ``parents`` are the digests that it was merged
    or trained from; ``metrics`` is any finite JSON object. ``num_bytes`` is the size of its weights
    file, ``rank`` the highest of any module, ``features`` are those of ``feature.features_of``,
    ``base`` is the fingerprint of the base that it was last checked against, or empty where
    unknown. ``created`` is a Unix time in seconds.
    """

    digest: str
    source: str = ""
    parents: tuple[str, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    num_bytes: int = 0
    rank: int = 0
    features: tuple[str, ...] = ()
    base: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        for digest in (self.digest, *self.parents):
            check_digest(digest)
        if self.num_bytes < 0 or self.rank < 0:
            raise ValueError(f"{self.num_bytes} bytes, rank {self.rank}: neither can be below 0")
        json.dumps(self.metrics, allow_nan=False)


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def check_digest(text: str) -> None:
    """Raise ``UnknownVersion`` for what cannot be a digest."""
    if not is_digest(text):
        raise UnknownVersion(f"{text[:100]!r} is no version: a digest is 64 hexadecimal digits")
