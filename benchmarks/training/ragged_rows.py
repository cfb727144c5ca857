"""What both sides of the comparison with TRL train: short rows of random tokens, the same for all.

Neither side's libraries are needed to make them.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

# Log-normal lengths, as instructions have them: most short, a few long.
SHORTEST, LONGEST, MEDIAN, SPREAD = 12, 256, 60, 0.7
RATE: Final = 1e-4


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids, and the weight of predicting each: the first half is a prompt, of weight 0."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Work:
    """What all sides do: ``warmup`` steps more than are measured.

    ``lora`` is the content of PEFT's ``adapter_config.json``.
    """

    base: Path
    shape: dict[str, Any]
    lora: dict[str, Any]
    steps: int
    warmup: int
    rows_per_step: int

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of ``fields``."""
        return cls(**{**fields, "base": Path(fields["base"])})

    def fields(self) -> dict[str, Any]:
        """As JSON can carry them to the process of a side."""
        return {**asdict(self), "base": str(self.base)}

    @property
    def start(self) -> Path:
        """The factors that all sides start with."""
        return self.base / "start.safetensors"

    def rows(self) -> list[Row]:
        numbers = random.Random(1)
        return [
            Row(
                tuple(numbers.randrange(2, self.shape["vocab_size"]) for _ in range(length)),
                (0.0,) * (length // 2) + (1.0,) * (length - length // 2),
            )
            for length in self._lengths(numbers)
        ]

    def _lengths(self, numbers: random.Random) -> Iterator[int]:
        for _ in range((self.steps + self.warmup) * self.rows_per_step):
            length = MEDIAN * numbers.lognormvariate(0, SPREAD)
            yield round(min(LONGEST, max(SHORTEST, length)))
