"""One projection of the decoder: the base matmul and every adapter's delta, as one op."""

from typing import Any

from torch import Tensor

from multiflora.kernels.ops import LoraInput, Ops, Weight


class AdaptedLinear:
    """``x [T, K] -> [T, N]`` for a batch of mixed adapters."""

    def __init__(self, ops: Ops, weight: Weight, bias: Tensor | None, table: Any) -> None:
        self._ops = ops
        self._weight = weight
        self._bias = bias
        self._table = table

    def __call__(self, x: Tensor, plan: Any | None) -> Tensor:
        """``plan`` is the step's ``plan_lora``, None in a step without adapters."""
        lora = None if plan is None else LoraInput(self._table, plan)
        return self._ops.linear(x, self._weight, self._bias, lora)
