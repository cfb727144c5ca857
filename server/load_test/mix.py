"""Which of several names each request asks."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Final

_FORMS: Final = "uniform, zipf, zipf:EXPONENT, tiers, or one share per name with commas between"
# What three equal groups of names get; with 15 names the split of llm-d's regression load.
_TIERS: Final = (0.6, 0.3, 0.1)


@dataclass(frozen=True, slots=True)
class Mix:
    """Names, and the sums of their shares up to each."""

    names: tuple[str, ...]
    sums: tuple[float, ...]

    @classmethod
    def parse(cls, text: str, names: Sequence[str]) -> "Mix":
        """Read ``uniform``, ``zipf``, ``zipf:1.2``, ``tiers`` or ``0.5,0.3,0.2``.

        Raises ``ValueError`` with the forms, or for shares that do not fit the names.
        """
        if not names:
            raise ValueError("no name is given to ask; give at least one")
        return cls(tuple(names), tuple(accumulate(_shares(text, len(names)))))

    def draw(self, random: Random) -> str:
        return random.choices(self.names, cum_weights=self.sums)[0]


def _shares(text: str, count: int) -> list[float]:
    kind, _, exponent = text.partition(":")
    if text == "uniform":
        return [1.0] * count
    if kind == "zipf":
        return [1 / place ** _number(exponent or "1") for place in range(1, count + 1)]
    if text == "tiers":
        return [_TIERS[3 * place // count] / _size_of_tier(place, count) for place in range(count)]
    shares = [_number(share) for share in text.split(",")]
    if len(shares) != count or min(shares) < 0 or not sum(shares):
        raise ValueError(f"{len(shares)} shares are given for {count} names; give one of {_FORMS}")
    return shares


def _size_of_tier(place: int, count: int) -> int:
    return sum(3 * other // count == 3 * place // count for other in range(count))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no mix of requests; give {_FORMS}") from None
