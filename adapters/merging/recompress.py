"""The best approximation of a delta at a lower rank, from its thin factors alone."""

from typing import NamedTuple

import torch
from torch import Tensor

from .delta import Delta
from .rank_policy import RankPolicy

__all__ = ["RankPolicy", "Recompressed", "recompress", "truncate"]

# Singular values below this share of the largest are rounding noise of float32 factors.
NOISE = 2**-22
# A dense matrix beyond this is too slow to decompose whole where few ranks are wanted.
_MAX_WHOLE = 1024
_SPARE_RANKS = 16
_NUM_ROUNDS = 8


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
    num_kept = _num_kept(values, rank)
    root = values[:num_kept].sqrt()
    b = b_basis @ (left[:, :num_kept] * root)
    a = (root[:, None] * right[:num_kept]) @ a_basis.T
    return Recompressed(Delta(b.float(), a.float()), _energy_kept(values, num_kept))


def truncate(matrix: Tensor, rank: RankPolicy) -> Recompressed:
    """As ``recompress``, for a dense matrix [N, K].

    Few ranks of a large matrix are found by subspace iteration (Halko et al., 2011), which may keep
    slightly less than the best; ``energy_kept`` is of what was found.
    """
    total = float(matrix.double().square().sum())
    if rank.rank is not None and min(matrix.shape) > max(_MAX_WHOLE, 4 * rank.rank):
        basis = _leading_outputs(matrix, rank.rank + _SPARE_RANKS)
        thin = recompress(Delta(basis, basis.T @ matrix), rank)
        held = float((thin.delta.b.T @ thin.delta.b).diagonal().double().square().sum())
        return Recompressed(thin.delta, min(1.0, held / total) if total else 1.0)
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    num_kept = _num_kept(values, rank)
    root = values[:num_kept].sqrt()
    delta = Delta((left[:, :num_kept] * root).float(), (root[:, None] * right[:num_kept]).float())
    return Recompressed(delta, _energy_kept(values, num_kept))


def _num_kept(values: Tensor, rank: RankPolicy) -> int:
    """How many of the singular values, in descending order, stay."""
    num_real = int((values > values[0] * NOISE).sum())
    if rank.rank is not None:
        return min(rank.rank, num_real)
    if rank.energy is None or num_real == 0:
        return num_real
    held = values[:num_real].square().cumsum(0)
    return min(num_real, int((held < rank.energy * held[-1]).sum()) + 1)


def _energy_kept(values: Tensor, num_kept: int) -> float:
    energy = values.square()
    total = float(energy.sum())
    return float(energy[:num_kept].sum()) / total if total else 1.0


def _leading_outputs(matrix: Tensor, num_ranks: int) -> Tensor:
    """Orthonormal [N, num_ranks] that nearly spans the leading left singular vectors."""
    generator = torch.Generator().manual_seed(0)
    basis = matrix @ torch.randn(matrix.shape[1], num_ranks, generator=generator)
    for _ in range(_NUM_ROUNDS):
        basis = torch.linalg.qr(basis)[0]
        basis = matrix @ torch.linalg.qr(matrix.T @ basis)[0]
    return torch.linalg.qr(basis)[0]
