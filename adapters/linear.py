"""One projection of the decoder: the base matmul and every adapter's delta, as one op."""

from collections.abc import Sequence

from torch import Tensor

from multiflora.kernels.ops import LoraInput, LoraTable, Ops, Segment, Weight


class AdaptedLinear:
    """``x [T, K] -> [T, N]`` for a batch of mixed adapters."""

    def __init__(self, ops: Ops, weight: Weight, bias: Tensor | None, table: LoraTable) -> None:
        self._ops = ops
        self._weight = weight
        self._bias = bias
        self._table = table

    def __call__(self, x: Tensor, segments: Sequence[Segment]) -> Tensor:
        lora = LoraInput(self._table, segments) if segments else None
        return self._ops.linear(x, self._weight, self._bias, lora)
