"""A canary: a second version that gets a share of a name's requests."""

import hashlib
import math
from dataclasses import dataclass
from typing import Final

from .error import InvalidCanary

# 2**64 divided by the golden ratio. Its multiples fill [0, 1) more evenly than any random draw.
_GOLDEN: Final = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Canary:
    """``weight``, in (0, 1], is the share of requests that ``digest`` answers.

    ``id`` stays the same while only the weight changes, so that a growing canary keeps its users.
    """

    id: int
    digest: str
    weight: float

    def has_user(self, name: str, user: str) -> bool:
        """Whether all requests of ``user`` go to the canary: sha256 of name, user and id."""
        seed = f"{len(name)}:{name}{self.id}:{user}"
        word = int.from_bytes(hashlib.sha256(seed.encode("utf-8", "surrogatepass")).digest()[:8])
        return _share(word) < self.weight

    def has_draw(self, index: int) -> bool:
        """Whether the ``index``-th request without a user goes to the canary.

        The multiples of the golden ratio modulo 1: the share is right after any number of
        requests, within a few of them, and no periodic traffic can fall into step with it.
        """
        return _share(index * _GOLDEN % 2**64) < self.weight


def check_weight(weight: float) -> None:
    """Raise ``InvalidCanary`` unless ``weight`` is in (0, 1]."""
    if not (math.isfinite(weight) and 0 < weight <= 1):
        raise InvalidCanary(
            f"a canary's weight is {weight}; it must be above 0 and at most 1 (0.05 is 5 %); "
            "to end the canary, clear it"
        )


def _share(word: int) -> float:
    """A 64-bit word as a number in [0, 1): 53 bits, so that none rounds up to 1."""
    return (word >> 11) / 2**53
