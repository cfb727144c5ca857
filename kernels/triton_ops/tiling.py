"""Tile sizes and split-K from shapes alone. Nothing here may look at a batch's contents.

In batch-invariant mode they may not even look at the number of rows, but to choose among tiles
whose arithmetic is the same: 16 and 32 rows both compile to ``mma.sync``, 64 rows to ``wgmma`` on
Hopper, whose sums may differ in the last bit.
"""

from dataclasses import dataclass

# Most rows that the fused kernel takes; beyond, decoding once and a dense matmul is cheaper.
FUSED_ROWS = 256
# Programs per multiprocessor that hide each other's latency.
_WAVES = 2
_SPLITS = (1, 2, 4, 8)
# Slabs of the shrink: enough programs for one version at one row.
_SLAB_COLUMNS = 512
_MAX_SLABS = 8


@dataclass(frozen=True, slots=True)
class MatmulTiling:
    """Launch parameters of the NF4 matmul.

    ``max_registers`` is where ptxas of Triton 3.7 spills nothing and three programs (two of 64
    rows) still fit a multiprocessor.
    """

    rows: int
    split: int
    stages: int
    max_registers: int


def row_tile(num_rows: int, *, batch_invariant: bool) -> int:
    if num_rows <= 16:
        return 16
    return 32 if num_rows <= 32 or batch_invariant else 64


def split_k(num_blocks: int, num_groups: int, num_multiprocessors: int) -> int:
    """The smallest split that fills the device; a function of (N, K, device) only."""
    wanted = _WAVES * num_multiprocessors
    fitting = [split for split in _SPLITS if split <= num_groups]
    return next((split for split in fitting if num_blocks * split >= wanted), fitting[-1])


def tile_matmul(
    num_rows: int,
    num_blocks: int,
    num_groups: int,
    num_multiprocessors: int,
    *,
    batch_invariant: bool,
) -> MatmulTiling:
    rows = row_tile(num_rows, batch_invariant=batch_invariant)
    # Further row tiles are programs too, unless a row's sum must not know of them.
    tiles = 1 if batch_invariant else ceil_div(num_rows, rows)
    split = split_k(num_blocks * tiles, num_groups, num_multiprocessors)
    if rows == 64:
        return MatmulTiling(rows, split, stages=3, max_registers=240)
    return MatmulTiling(rows, split, stages=4, max_registers=168)


def num_slabs(in_features: int) -> int:
    """Shares of K in the LoRA shrink; a function of K only."""
    return max(1, min(_MAX_SLABS, in_features // _SLAB_COLUMNS))


def ceil_div(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)
