"""NF4 in canonical order: nothing is permuted."""

import torch
from torch import Tensor

from ..nf4 import Nf4Tensor, dequantize
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


def canonical(weight: Nf4Weight) -> Nf4Tensor:
    """View a packed weight of this layout as the canonical tensor it is."""
    assert weight.layout == LAYOUT
    tensors = weight.tensors
    return Nf4Tensor(tensors["codes"], tensors["absmax"], weight.out_features, weight.in_features)
