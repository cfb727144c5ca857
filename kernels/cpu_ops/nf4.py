"""NF4 on CPU through bitsandbytes: its packed AVX-512-BF16 matmul, or its dequantize kernel.

bitsandbytes' unpacked 4-bit matmul is 10 to 45 times slower than the packed one and is never used.
"""

from functools import cache

import torch
from torch import Tensor

from ..nf4 import BLOCK_SIZE, CODEBOOK, Nf4Tensor
from ..ops import Nf4Weight
from ..torch_ops import nf4 as canonical_nf4

PACKED_LAYOUT = "bitsandbytes-avx512bf16"
_ROWS_PER_BLOCK = 32


@cache
def has_fast_bfloat16() -> bool:
    """Whether this processor runs bitsandbytes' packed bf16 matmul (AVX-512-BF16)."""
    from bitsandbytes.functional import has_avx512bf16

    return bool(has_avx512bf16())


def pack_nf4(weight: Nf4Tensor, dtype: torch.dtype) -> Nf4Weight:
    """Use the packed layout for bf16 where the processor and the shape allow it, else canonical.

    float32 never takes the packed path: it rounds activations and scales to bf16.
    """
    if dtype != torch.bfloat16 or not has_fast_bfloat16() or weight.out_features % _ROWS_PER_BLOCK:
        return canonical_nf4.pack_nf4(weight, dtype)
    tensors = {
        "codes": _interleave(weight),
        "absmax": _by_block(weight).T.to(torch.bfloat16).contiguous(),  # [K / 64, N]
    }
    return Nf4Weight(PACKED_LAYOUT, tensors, weight.out_features, weight.in_features, dtype)


def unpack_nf4(weight: Nf4Weight, dtype: torch.dtype) -> Tensor:
    """Decode to [N, K]; bit-exact for the canonical layout, with bf16 scales for the packed one."""
    if weight.layout == PACKED_LAYOUT:
        return canonical_nf4.unpack_nf4(_to_canonical(weight), dtype)
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


def _by_block(weight: Nf4Tensor) -> Tensor:
    return weight.absmax.view(weight.out_features, weight.in_features // BLOCK_SIZE)


def _interleave(weight: Nf4Tensor) -> Tensor:
    """bitsandbytes' order [N / 32, K / 2, 32]; low nibbles hold the first 32 of 64 codes."""
    num_rows, num_columns = weight.out_features, weight.in_features
    codes = weight.codes.view(num_rows, num_columns // 2)
    pairs = torch.stack((codes >> 4, codes & 0xF), dim=-1)  # [N, K / 2, 2]
    tiles = pairs.view(num_rows // _ROWS_PER_BLOCK, _ROWS_PER_BLOCK, num_columns // 2, 2)
    runs = tiles.transpose(1, 2).reshape(-1, 2, _ROWS_PER_BLOCK)  # [N * K / 64, 2, 32]
    return ((runs[:, 1] << 4) | runs[:, 0]).view(num_rows, num_columns // 2)


def _to_canonical(weight: Nf4Weight) -> Nf4Weight:
    num_rows, num_columns = weight.out_features, weight.in_features
    packed = weight.tensors["codes"].view(-1, _ROWS_PER_BLOCK)
    runs = torch.stack((packed & 0xF, packed >> 4), dim=1)  # [N * K / 64, 2, 32]
    tiles = runs.view(num_rows // _ROWS_PER_BLOCK, num_columns // 2, _ROWS_PER_BLOCK, 2)
    pairs = tiles.transpose(1, 2).reshape(-1, 2)
    codes = (pairs[:, 0] << 4) | pairs[:, 1]
    absmax = weight.tensors["absmax"].float().T.contiguous().view(-1)
    tensors = {"codes": codes, "absmax": absmax}
    return Nf4Weight(canonical_nf4.LAYOUT, tensors, num_rows, num_columns, weight.dtype)
