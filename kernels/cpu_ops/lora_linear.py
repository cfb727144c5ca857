"""The projection op on CPU: the compiled core where it can, packed bf16 or row blocks elsewhere."""

from typing import TypeGuard

import torch
from torch import Tensor, bfloat16, float32

from ..ops import DenseWeight, LoraInput, Nf4Weight, Weight
from .core import BLOCK_COLUMNS, DTYPES, PAIRED_COLUMNS, Core, load_core
from .lora_tables import LoraPlan, ProjectionTable
from .nf4 import PACKED_LAYOUT, TILES_LAYOUT, packed_matmul, unpack_nf4
from .processor import has_fast_bfloat16
from .row_block import add_block_delta, block_matmul, pad_rows

# Up to here the core's way back beats decoding the matrix and GEMM, by rows and times as fast. In
# float32 on AVX2: 32 rows 1.2 to 4.9, 128 rows 1.0 to 1.8, 512 rows 0.7 to 1.1. In bfloat16: 32
# rows 3.3 to 8, 128 rows 1.7 to 3.4, 512 rows 0.9 to 1.1, 2048 rows 0.6 to 1.5.
_FUSED_ROWS = {float32: 256, bfloat16: 512}


def linear(x: Tensor, weight: Weight, bias: Tensor | None, lora: LoraInput | None) -> Tensor:
    """With the core sums are float32 until the deltas are in: a result is rounded once."""
    x = x.contiguous()
    core = load_core()
    y = _matmul(x, weight, core)
    if bias is not None:
        y += bias
    if lora is not None and lora.table.dtype is not None:
        y = _add_deltas(y, x, lora.table, lora.plan, core)
    if core is not None and (y.dtype, x.dtype) == (float32, bfloat16):
        return core.round(y)
    return y.to(x.dtype)


def input_gradient(dy: Tensor, weight: Weight) -> Tensor:
    core = load_core()
    dx = _flow_back(dy, weight, core) if core is not None else None
    if core is None or dx is None:
        return dy @ _dense(weight, dy.dtype)
    return dx if dy.dtype == float32 else core.round(dx)


def _flow_back(dy: Tensor, weight: Weight, core: Core) -> Tensor | None:
    """dy @ W as float32, where the core has a way back that beats decoding the matrix."""
    is_paired = core.multiplies_bfloat16 and dy.dtype == bfloat16
    if not (is_paired or dy.dtype == float32) or len(dy) > _FUSED_ROWS[dy.dtype]:
        return None
    if isinstance(weight, Nf4Weight):
        if weight.layout != TILES_LAYOUT:
            return None
        tensors = weight.tensors
        return core.nf4_backward(dy.contiguous(), tensors["codes"], tensors["absmax"])
    reads = (bfloat16,) if is_paired else DTYPES
    is_read = weight.data.dtype in reads and _is_blocked(weight.data)
    return core.dense_backward(dy.contiguous(), weight.data) if is_read else None


def _is_blocked(matrix: Tensor) -> bool:
    return not matrix.shape[1] % BLOCK_COLUMNS and matrix.is_contiguous()


def _dense(weight: Weight, dtype: torch.dtype) -> Tensor:
    """[N, K] in ``dtype``, if need be decoded."""
    if isinstance(weight, DenseWeight):
        return weight.data.to(dtype)
    return unpack_nf4(weight, dtype)


def _matmul(x: Tensor, weight: Weight, core: Core | None) -> Tensor:
    """x @ W.T as float32, or as rounded as the operation at hand leaves it."""
    if isinstance(weight, Nf4Weight) and weight.layout == PACKED_LAYOUT:
        return packed_matmul(x, weight)
    if core is not None and core.multiplies_bfloat16 and x.dtype == bfloat16:
        if isinstance(weight, Nf4Weight) and weight.layout == TILES_LAYOUT:
            return core.nf4_matmul(x, weight.tensors["codes"], weight.tensors["absmax"])
        if _is_paired(weight):
            return core.dense_matmul(x, weight.data)
    elif isinstance(weight, DenseWeight) and x.dtype != float32 and has_fast_bfloat16():
        return block_matmul(pad_rows(x), weight.data, x.shape[0])
    # float32 inside: without bf16 units it is five times faster than bf16, and more exact.
    return _matmul_float32(x.float(), weight, core)


def _is_paired(weight: Weight) -> TypeGuard[DenseWeight]:
    return (
        isinstance(weight, DenseWeight)
        and weight.data.dtype == bfloat16
        and not weight.data.shape[1] % PAIRED_COLUMNS
        and weight.data.is_contiguous()
    )


def _matmul_float32(x: Tensor, weight: Weight, core: Core | None) -> Tensor:
    if isinstance(weight, Nf4Weight) and weight.layout == TILES_LAYOUT:
        assert core is not None
        return core.nf4_matmul(x, weight.tensors["codes"], weight.tensors["absmax"])
    dense = weight.data if isinstance(weight, DenseWeight) else unpack_nf4(weight, float32)
    if core is not None:
        if dense.dtype not in DTYPES:
            dense = dense.float()
        return core.dense_matmul(x, dense.contiguous())
    return block_matmul(pad_rows(x), dense.float(), x.shape[0])


def _add_deltas(
    y: Tensor, x: Tensor, table: ProjectionTable, plan: LoraPlan, core: Core | None
) -> Tensor:
    assert table.dtype == x.dtype, f"{table.dtype} factors for {x.dtype} rows"
    if core is not None and table.dtype in DTYPES:
        y = y.float()
        is_alike = x.dtype == table.dtype
        core.add_deltas(y, x if is_alike else x.float(), table.dtype, table.versions, plan.records)
        return y
    padded = pad_rows(x)
    for segment in plan.segments:
        factors = table.factors[segment.slot]
        if factors is not None:
            add_block_delta(y, padded, factors, segment.start, segment.stop, segment.weight)
    return y
