"""The few ranks that hold most of a dense difference, found without decomposing all of it."""

from torch import Tensor

from multiflora.adapters.merging.rank_policy import RankPolicy
from multiflora.adapters.merging.recompress import Recompressed, recompress, truncate

# Below this a whole decomposition takes a second or two.
_SMALL = 1024
_FIRST_RANKS, _GROWTH = 32, 4


def decompose(matrix: Tensor, rank: RankPolicy) -> Recompressed:
    """As ``truncate``; for an energy of a large matrix more and more ranks are tried.

    ``energy_kept`` is measured on the whole matrix, so that it is true however ranks were found.
    """
    if rank.energy is None or min(matrix.shape) <= _SMALL:
        return truncate(matrix, rank)
    tried = _FIRST_RANKS
    while _GROWTH * tried < min(matrix.shape):
        found = truncate(matrix, RankPolicy(rank=tried))
        if found.energy_kept >= rank.energy:
            # Of what was found, the share that makes the energy of the whole.
            share = min(1.0, rank.energy / found.energy_kept)
            thin = recompress(found.delta, RankPolicy(energy=share))
            return Recompressed(thin.delta, thin.energy_kept * found.energy_kept)
        tried *= _GROWTH
    return truncate(matrix, rank)
