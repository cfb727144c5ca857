"""The change that an adapter makes to one linear, as the product of two thin factors.

Any invertible G gives the same product from ``b @ inv(G)`` and ``G @ a``: nothing may depend on the
factors one by one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Delta:
    """``dW = b @ a`` with every scale folded in: b [N, R], a [R, K], both float32 on the CPU.

    R may be 0: a zero delta that still knows its shape.
    """

    b: Tensor
    a: Tensor

    def __post_init__(self) -> None:
        assert self.b.shape[1] == self.a.shape[0]

    @property
    def rank(self) -> int:
        """Ranks held, which bound the rank of the product from above."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape [N, K] of the linear's weight."""
        return self.b.shape[0], self.a.shape[1]

    def dense(self) -> Tensor:
        """float32 [N, K]."""
        return self.b @ self.a

    def scaled(self, factor: float) -> "Delta":
        return Delta(self.b * factor, self.a)

    def balanced(self) -> "Delta":
        """The same product, to the bit, with each rank's two vectors of about equal length.

        Factors of lopsided size would overflow or vanish in float16.
        """
        ratio = self.a.norm(dim=1) / self.b.norm(dim=0)  # [R]
        usable = ratio.isfinite() & (ratio > 0)
        # Powers of two move exponents only.
        power = torch.where(usable, ratio, 1.0).log2().div(2).round().exp2()
        return Delta(self.b * power, self.a / power[:, None])


def zero_delta(shape: tuple[int, int]) -> Delta:
    return Delta(torch.zeros(shape[0], 0), torch.zeros(0, shape[1]))


def concatenate(deltas: Sequence[Delta]) -> Delta:
    """The exact sum, at the sum of the ranks. All deltas have one shape."""
    return Delta(
        torch.cat([delta.b for delta in deltas], dim=1), torch.cat([delta.a for delta in deltas])
    )


def combine(deltas: Sequence[Delta], coefficients: Sequence[float]) -> Delta:
    """The exact weighted sum; a delta with coefficient 0 takes no rank. All have one shape."""
    kept = [d.scaled(c) for d, c in zip(deltas, coefficients, strict=True) if c != 0]
    return concatenate(kept) if kept else zero_delta(deltas[0].shape)


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite, in one pass and without a mask."""
    # NaN is passed on by both.
    return all(map(math.isfinite, map(float, tensor.aminmax())))


def inner_product(left: Delta, right: Delta) -> float:
    """Frobenius product <left, right> in float64, without a dense matrix."""
    # tr(A_r^T B_r^T B_l A_l) = sum((B_l^T B_r) * (A_l A_r^T))
    outputs = left.b.double().T @ right.b.double()  # [R_left, R_right]
    inputs = left.a.double() @ right.a.double().T
    return float((outputs * inputs).sum())
