"""From canonical NF4 to the planar, tile-major layout that the kernels stream; and back, exactly.

``codes`` int16 [N / BN, K / 64, BN, 16]: one tile is 64 weights of ``BN`` rows, 4 KB contiguous at
``BN`` 128, and a column block is read front to back. ``codebook`` explains a row's sixteen words.
``absmax`` [N / BN, K / 64, BN] holds the tile's scales in float16, or float32 where one of them
would lose precision there. Rows are padded to a multiple of ``BN`` with zeros.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..nf4 import BLOCK_SIZE, Nf4Tensor, dequantize
from ..ops import Nf4Weight

LAYOUT = "planar4"
_LANES = 16
_ZERO_CODE = 7
# Normal float16 numbers; below, a scale would lose bits.
_HALF_RANGE = (6.2e-5, 6e4)
# Blocks of rows converted at a time, to bound the temporaries.
_BLOCKS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class TiledShape:
    """How a matrix [N, K] is cut: ``rows`` (BN) by 64."""

    out_features: int
    in_features: int

    @property
    def rows(self) -> int:
        return 128 if self.out_features % 128 == 0 else 64

    @property
    def num_blocks(self) -> int:
        return -(-self.out_features // self.rows)

    @property
    def num_groups(self) -> int:
        return self.in_features // BLOCK_SIZE


def pack_nf4(weight: Nf4Tensor, dtype: torch.dtype) -> Nf4Weight:
    shape = TiledShape(weight.out_features, weight.in_features)
    codes = weight.codes.view(weight.out_features, -1)  # [N, K / 2]
    pieces = [
        _permute(piece, shape) for piece in codes.split(_BLOCKS_AT_ONCE * shape.rows)
    ]  # each [blocks, K / 64, BN, 16]
    tensors = {"codes": torch.cat(pieces), "absmax": _pack_absmax(weight, shape)}
    return Nf4Weight(LAYOUT, tensors, weight.out_features, weight.in_features, dtype)


def _permute(codes: Tensor, shape: TiledShape) -> Tensor:
    """uint8 [rows, K / 2] -> int16 [blocks, K / 64, BN, 16]."""
    nibbles = torch.stack((codes >> 4, codes & 0xF), dim=-1).flatten(1)  # [rows, K]
    nibbles = _pad_rows(nibbles, shape.rows, _ZERO_CODE)
    # [blocks, BN, K / 64, half, plane of the half, pair, even or odd]
    planes = nibbles.view(-1, shape.rows, shape.num_groups, 2, 2, _LANES // 2, 2).to(torch.int16)
    words = planes.new_zeros(*planes.shape[:4], _LANES // 2)  # [blocks, BN, K / 64, half, pair]
    for plane in range(2):
        for odd in range(2):
            words |= planes[:, :, :, :, plane, :, odd] << (4 * (2 * plane + odd))
    return words.permute(0, 2, 1, 4, 3).flatten(3).contiguous()


def _pad_rows(rows: Tensor, multiple: int, value: int | float) -> Tensor:
    missing = -rows.shape[0] % multiple
    return torch.nn.functional.pad(rows, (0, 0, 0, missing), value=value) if missing else rows


def _pack_absmax(weight: Nf4Tensor, shape: TiledShape) -> Tensor:
    absmax = _pad_rows(weight.absmax.view(weight.out_features, -1), shape.rows, 0)
    tiled = absmax.view(-1, shape.rows, shape.num_groups).transpose(1, 2).contiguous()
    used = absmax[absmax != 0].abs()
    low, high = _HALF_RANGE
    fits = used.numel() == 0 or (float(used.min()) >= low and float(used.max()) <= high)
    return tiled.half() if fits else tiled


def slice_nf4(weight: Nf4Weight, start: int, stop: int) -> Nf4Weight:
    """Rows ``[start, stop)``, which are whole tiles; to be unpacked, not to be multiplied with."""
    assert weight.layout == LAYOUT
    rows = TiledShape(weight.out_features, weight.in_features).rows
    blocks = slice(start // rows, -(-stop // rows))
    tensors = {name: tensor[blocks] for name, tensor in weight.tensors.items()}
    return replace(weight, tensors=tensors, out_features=stop - start)


def unpack_codes(weight: Nf4Weight) -> Tensor:
    """The canonical codes uint8 [N * K / 2], bit for bit."""
    assert weight.layout == LAYOUT
    words = weight.tensors["codes"].view(*weight.tensors["codes"].shape[:3], _LANES // 2, 2)
    nibbles = [(words >> (4 * place)) & 0xF for place in range(4)]
    # [blocks, K / 64, BN, pair, half, plane of the half, even or odd]
    planes = torch.stack(nibbles, dim=-1).view(*words.shape, 2, 2)
    rows = planes.permute(0, 2, 1, 4, 5, 3, 6).reshape(-1, weight.in_features)
    pairs = rows[: weight.out_features].reshape(-1, 2).to(torch.uint8)
    return (pairs[:, 0] << 4) | pairs[:, 1]


def unpack_nf4(weight: Nf4Weight, dtype: torch.dtype) -> Tensor:
    """Decode to [N, K]; absmax as stored, so float16 scales show here too."""
    absmax = weight.tensors["absmax"].float().transpose(1, 2).reshape(-1, weight.in_features // 64)
    canonical = Nf4Tensor(
        unpack_codes(weight),
        absmax[: weight.out_features].reshape(-1),
        weight.out_features,
        weight.in_features,
    )
    return dequantize(canonical, dtype)
