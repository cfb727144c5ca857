"""NF4 in canonical order: nothing is permuted."""

from dataclasses import replace

import torch
from torch import Tensor

from ..nf4 import BLOCK_SIZE, Nf4Tensor, dequantize
from ..ops import Nf4Weight

LAYOUT = "canonical"


def pack_nf4(weight: Nf4Tensor, dtype: torch.dtype) -> Nf4Weight:
    return Nf4Weight(
        LAYOUT,
        {"codes": weight.codes, "absmax": weight.absmax},
        weight.out_features,
        weight.in_features,
        dtype,
    )


def unpack_nf4(weight: Nf4Weight, dtype: torch.dtype) -> Tensor:
    return dequantize(canonical(weight), dtype)


def slice_nf4(weight: Nf4Weight, start: int, stop: int) -> Nf4Weight:
    assert weight.layout == LAYOUT
    first, last = start * weight.in_features, stop * weight.in_features
    tensors = {
        "codes": weight.tensors["codes"][first // 2 : last // 2],
        "absmax": weight.tensors["absmax"][first // BLOCK_SIZE : last // BLOCK_SIZE],
    }
    return replace(weight, tensors=tensors, out_features=stop - start)


def canonical(weight: Nf4Weight) -> Nf4Tensor:
    """View a packed weight of this layout as the canonical tensor it is."""
    assert weight.layout == LAYOUT
    tensors = weight.tensors
    return Nf4Tensor(tensors["codes"], tensors["absmax"], weight.out_features, weight.in_features)
