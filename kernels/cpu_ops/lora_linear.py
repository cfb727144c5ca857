"""The projection op on CPU: the compiled core where it can, packed bf16 or row blocks elsewhere."""

from torch import Tensor, float32

from ..ops import DenseWeight, LoraInput, Nf4Weight, Weight
from .core import Core, load_core
from .nf4 import PACKED_LAYOUT, WORDS_LAYOUT, has_fast_bfloat16, packed_matmul, unpack_nf4
from .row_block import add_block_delta, block_matmul, pad_rows


def linear(x: Tensor, weight: Weight, bias: Tensor | None, lora: LoraInput | None) -> Tensor:
    x = x.contiguous()
    core = load_core()
    y = _matmul(x, weight, core)
    if bias is not None:
        y += bias
    if lora is not None:
        _add_deltas(y, x, lora, core if x.dtype == float32 else None)
    return y


def _matmul(x: Tensor, weight: Weight, core: Core | None) -> Tensor:
    if isinstance(weight, Nf4Weight) and weight.layout == PACKED_LAYOUT:
        return packed_matmul(x, weight)
    if isinstance(weight, DenseWeight) and x.dtype != float32 and has_fast_bfloat16():
        return block_matmul(pad_rows(x), weight.data, x.shape[0])
    # float32 inside: without bf16 units it is five times faster than bf16, and more exact.
    return _matmul_float32(x.float(), weight, core).to(x.dtype)


def _matmul_float32(x: Tensor, weight: Weight, core: Core | None) -> Tensor:
    if isinstance(weight, Nf4Weight) and weight.layout == WORDS_LAYOUT:
        assert core is not None
        return core.nf4_matmul(x, weight.tensors["words"], weight.tensors["absmax"])
    is_dense = isinstance(weight, DenseWeight)
    dense = weight.data.float() if is_dense else unpack_nf4(weight, float32)
    if core is not None:
        return core.dense_matmul(x, dense.contiguous())
    return block_matmul(pad_rows(x), dense, x.shape[0])


def _add_deltas(y: Tensor, x: Tensor, lora: LoraInput, core: Core | None) -> None:
    padded = None if core else pad_rows(x)
    for segment in lora.plan:
        factors = lora.table[segment.slot]
        if factors is None:
            continue
        rows = (segment.start, segment.stop)
        if core is not None:
            core.add_delta(y, x, factors, *rows, segment.weight)
        elif padded is not None:
            add_block_delta(y, padded, factors, *rows, segment.weight)
