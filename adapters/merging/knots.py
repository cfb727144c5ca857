"""KnOTS (Stoica et al., 2024): one output basis for all parents, found from thin factors alone."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .delta import Delta
from .recompress import NOISE


class Alignment(NamedTuple):
    """``dW_i = basis @ blocks[i]`` for every parent: basis [N, R] orthonormal, blocks [R, K].

    The basis is U of the SVD of [dW_1 ... dW_n]; a block is S V_i^T. R is at most the sum of ranks.
    """

    basis: Tensor
    blocks: list[Tensor]


def align(deltas: Sequence[Delta]) -> Alignment:
    """Deltas of one shape, in one basis. Rows of blocks are unique up to their sign."""
    basis, core = torch.linalg.qr(torch.cat([d.b for d in deltas], dim=1).double())
    stops = torch.tensor([d.rank for d in deltas]).cumsum(0).tolist()
    rows = [
        core[:, stop - delta.rank : stop] @ delta.a.double()
        for delta, stop in zip(deltas, stops, strict=True)
    ]
    # U of the stacked rows diagonalises their products; its eigenvalues are S squared.
    energy, turn = torch.linalg.eigh(torch.stack([row @ row.T for row in rows]).sum(0))
    energy, turn = energy.flip(0), turn.flip(1)
    is_real = energy > energy.max() * NOISE**2 if len(energy) else energy > 0
    turn = turn[:, is_real]
    return Alignment((basis @ turn).float(), [(turn.T @ row).float() for row in rows])
