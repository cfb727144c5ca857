"""How many ranks a result keeps. Knows no tensor, so that any process can check one."""

from dataclasses import dataclass
from typing import Self

_ENERGY = "energy:"


@dataclass(frozen=True, slots=True)
class RankPolicy:
    """All ranks, at most ``rank`` of them, or the fewest that hold ``energy``, a share in (0, 1] of
    the squared Frobenius norm.

    Raises ``ValueError`` for a rank below 1 or an energy outside that range.
    """

    rank: int | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        assert self.rank is None or self.energy is None
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank is {self.rank}; it must be at least 1")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ValueError(f"rank energy is {self.energy}; it must be above 0 and at most 1")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``exact``, ``16`` or ``energy:0.99``. Raises ``ValueError``."""
        try:
            if text == "exact":
                return cls()
            if text.startswith(_ENERGY):
                return cls(energy=float(text.removeprefix(_ENERGY)))
            return cls(rank=int(text))
        except ValueError as error:
            reason = str(error) if "must be" in str(error) else f"{text[:40]!r} is no rank"
            raise ValueError(f"{reason}; give exact, a number, or energy:0.99") from None

    @property
    def is_exact(self) -> bool:
        return self.rank is None and self.energy is None

    def __str__(self) -> str:
        if self.energy is not None:
            return f"{_ENERGY}{self.energy}"
        return "exact" if self.rank is None else str(self.rank)
