"""The best approximation of a delta at a lower rank, from its thin factors alone."""

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from .delta import Delta

_ENERGY = "energy:"
# Singular values below this share of the largest are rounding noise of float32 factors.
_NOISE = 2**-22


@dataclass(frozen=True, slots=True)
class RankPolicy:
    """How many ranks a result keeps: all of them, at most ``rank``, or the fewest that hold
    ``energy``, a share in (0, 1] of the squared Frobenius norm.

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
            reason = str(error) if "must be" in str(error) else f"{text!r} is no rank"
            raise ValueError(f"{reason}; give exact, a number, or energy:0.99") from None

    @property
    def is_exact(self) -> bool:
        return self.rank is None and self.energy is None

    def __str__(self) -> str:
        if self.energy is not None:
            return f"{_ENERGY}{self.energy}"
        return "exact" if self.rank is None else str(self.rank)

    def num_kept(self, singular_values: Tensor) -> int:
        """How many of the singular values, in descending order, stay."""
        floor = float(singular_values[0]) * _NOISE if len(singular_values) else 0.0
        num_real = int((singular_values > floor).sum())
        if self.rank is not None:
            return min(self.rank, num_real)
        if self.energy is None or num_real == 0:
            return num_real
        held = singular_values[:num_real].double().square().cumsum(0)
        return min(num_real, int((held < self.energy * held[-1]).sum()) + 1)


class Recompressed(NamedTuple):
    """``energy_kept`` is the share of the squared Frobenius norm that is left, in [0, 1]."""

    delta: Delta
    energy_kept: float


def recompress(delta: Delta, rank: RankPolicy) -> Recompressed:
    """The nearest delta of that rank, with sqrt(S) on both sides; no dense matrix is made.

    An exact policy leaves the factors alone, unless they hold more ranks than the matrix can.
    """
    if delta.rank == 0 or (rank.is_exact and delta.rank <= min(delta.shape)):
        return Recompressed(delta, 1.0)
    # In float64 the error stays that of the float32 factors.
    b_basis, b_core = torch.linalg.qr(delta.b.double())  # [N, R], [R, R]
    a_basis, a_core = torch.linalg.qr(delta.a.double().T)  # [K, R], [R, R]
    left, values, right = torch.linalg.svd(b_core @ a_core.T, full_matrices=False)
    return _truncated(b_basis @ left, values, right @ a_basis.T, rank)


def truncate(matrix: Tensor, rank: RankPolicy) -> Recompressed:
    """As ``recompress``, for a dense matrix [N, K]; O(N K min(N, K))."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    return _truncated(left, values, right, rank)


def _truncated(left: Tensor, values: Tensor, right: Tensor, rank: RankPolicy) -> Recompressed:
    num_kept = rank.num_kept(values)
    root = values[:num_kept].sqrt()
    delta = Delta((left[:, :num_kept] * root).float(), (root[:, None] * right[:num_kept]).float())
    energy = values.square()
    total = float(energy.sum())
    return Recompressed(delta, float(energy[:num_kept].sum()) / total if total else 1.0)
