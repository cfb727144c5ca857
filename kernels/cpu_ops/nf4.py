"""NF4 layouts on CPU, best first:

    tiles       the compiled core's own
    packed      bitsandbytes' AVX-512-BF16 matmul, for bf16 activations without such a core
    canonical   decoded once per step by bitsandbytes' dequantize kernel

bitsandbytes' unpacked 4-bit matmul is 10 to 45 times slower than its packed one and is never used.
"""

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from ..nf4 import BLOCK_SIZE, CODEBOOK, Nf4Tensor
from ..ops import Nf4Weight
from ..torch_ops import nf4 as canonical_nf4
from .core import load_core
from .processor import has_fast_bfloat16

PACKED_LAYOUT = "bitsandbytes-avx512bf16"
TILES_LAYOUT = "tiles-16"
_ROWS_PER_BLOCK = 32
_ROWS_PER_TILE = 16


def pack_nf4(weight: Nf4Tensor, dtype: torch.dtype) -> Nf4Weight:
    """Bring ``weight`` into the best layout that the processor, the build and the shape allow.

    float32 never takes the packed path: it rounds activations and scales to bf16.
    """
    core, is_fast = load_core(), dtype == torch.bfloat16 and has_fast_bfloat16()
    if is_fast and not (core and core.multiplies_bfloat16) and not weight.out_features % 32:
        return packed_nf4(weight)
    if core is not None and not weight.out_features % _ROWS_PER_TILE:
        tiles = _to_tiles(weight)
        return Nf4Weight(TILES_LAYOUT, tiles, weight.out_features, weight.in_features, dtype)
    return canonical_nf4.pack_nf4(weight, dtype)


def packed_nf4(weight: Nf4Tensor) -> Nf4Weight:
    """``weight`` as ``packed_matmul`` takes it; its rows are a multiple of 32."""
    absmax = weight.absmax.view(weight.out_features, weight.in_features // BLOCK_SIZE)
    tensors = {
        "codes": _interleave(weight),
        "absmax": absmax.T.to(torch.bfloat16).contiguous(),  # [K / 64, N]
    }
    shape = weight.out_features, weight.in_features
    return Nf4Weight(PACKED_LAYOUT, tensors, *shape, torch.bfloat16)


def unpack_nf4(weight: Nf4Weight, dtype: torch.dtype) -> Tensor:
    """Decode to [N, K]; bit-exact but for the packed layout, which holds its scales in bf16."""
    if weight.layout == TILES_LAYOUT:
        core = load_core()
        assert core is not None
        return core.nf4_unpack(weight.tensors["codes"], weight.tensors["absmax"]).to(dtype)
    if weight.layout == PACKED_LAYOUT:
        weight = _from_packed(weight)
    from bitsandbytes import functional as _registers_the_op  # noqa: F401

    dense = torch.ops.bitsandbytes.dequantize_4bit(
        weight.tensors["codes"],
        weight.tensors["absmax"],
        BLOCK_SIZE,
        "nf4",
        [weight.out_features, weight.in_features],
        torch.float32,
    )
    return dense.to(dtype)


def slice_nf4(weight: Nf4Weight, start: int, stop: int) -> Nf4Weight:
    """Rows ``[start, stop)``, which are whole tiles of every layout."""
    if weight.layout == canonical_nf4.LAYOUT:
        return canonical_nf4.slice_nf4(weight, start, stop)
    parts = weight.tensors
    if weight.layout == PACKED_LAYOUT:
        parts = {"codes": parts["codes"][start:stop], "absmax": parts["absmax"][:, start:stop]}
    else:
        tiles = slice(start // _ROWS_PER_TILE, stop // _ROWS_PER_TILE)
        parts = {name: part[tiles] for name, part in parts.items()}
    return replace(weight, tensors=parts, out_features=stop - start)


def packed_matmul(x: Tensor, weight: Nf4Weight) -> Tensor:
    """x bf16 [T, K] -> bf16 [T, N]; each row's bits are the same for every T."""
    return torch.ops.bitsandbytes.gemv_4bit(
        x.contiguous(),
        weight.tensors["codes"],
        [weight.out_features, weight.in_features],
        weight.tensors["absmax"],
        _codebook(),
        BLOCK_SIZE,
    )


@cache
def _codebook() -> Tensor:
    return torch.tensor(CODEBOOK)


def _interleave(weight: Nf4Tensor) -> Tensor:
    """bitsandbytes' order [N / 32, K / 2, 32]; low nibbles hold the first 32 of 64 codes."""
    num_rows, num_columns = weight.out_features, weight.in_features
    pairs = _split(weight.codes).view(num_rows, num_columns // 2, 2)
    tiles = pairs.view(num_rows // _ROWS_PER_BLOCK, _ROWS_PER_BLOCK, num_columns // 2, 2)
    runs = tiles.transpose(1, 2).reshape(-1, 2, _ROWS_PER_BLOCK)  # [N * K / 64, 2, 32]
    return ((runs[:, 1] << 4) | runs[:, 0]).view(num_rows, num_columns // 2)


def _from_packed(weight: Nf4Weight) -> Nf4Weight:
    num_rows, num_columns = weight.out_features, weight.in_features
    packed = weight.tensors["codes"].view(-1, _ROWS_PER_BLOCK)
    runs = torch.stack((packed & 0xF, packed >> 4), dim=1)  # [N * K / 64, 2, 32]
    tiles = runs.view(num_rows // _ROWS_PER_BLOCK, num_columns // 2, _ROWS_PER_BLOCK, 2)
    codes = _join(tiles.transpose(1, 2).reshape(-1, 2))
    absmax = weight.tensors["absmax"].float().T.contiguous().view(-1)
    return _canonical(weight, codes, absmax)


def _to_tiles(weight: Nf4Tensor) -> dict[str, Tensor]:
    """The core's order, as ``csrc/nf4.cpp`` says it: codes uint8 [N / 16, K / 4, 32]."""
    num_tiles, num_columns = weight.out_features // _ROWS_PER_TILE, weight.in_features
    # [tile, half of the rows, lane / 4, lane % 4, K / 4, nibble, column of two]
    codes = _split(weight.codes).view(num_tiles, 2, 2, 4, num_columns // 4, 2, 2)
    # [tile, K / 4, nibble, lane / 4, column of two, half, lane % 4]
    runs = codes.permute(0, 4, 5, 2, 6, 1, 3).reshape(num_tiles, num_columns // 4, 2, 32)
    absmax = weight.absmax.view(num_tiles, _ROWS_PER_TILE, num_columns // BLOCK_SIZE)
    return {
        "codes": runs[:, :, 0] | (runs[:, :, 1] << 4),
        "absmax": absmax.transpose(1, 2).contiguous(),
    }


def _split(codes: Tensor) -> Tensor:
    """Bytes to nibbles [.., 2], the high one, which comes first, in front."""
    return torch.stack((codes >> 4, codes & 0xF), dim=-1)


def _join(pairs: Tensor) -> Tensor:
    return (pairs[:, 0] << 4) | pairs[:, 1]


def _canonical(weight: Nf4Weight, codes: Tensor, absmax: Tensor) -> Nf4Weight:
    return Nf4Weight(
        canonical_nf4.LAYOUT,
        {"codes": codes, "absmax": absmax},
        weight.out_features,
        weight.in_features,
        weight.dtype,
    )
