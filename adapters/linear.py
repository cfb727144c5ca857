"""One projection of the decoder: the base matmul and every adapter's delta, as one op."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from multiflora.kernels.adjustment import Adjusted, adjust_outputs, scale_inputs
from multiflora.kernels.ops import LoraInput, LoraTables, Ops, Segment, Weight

from .adjustment_table import AdjustmentTable


class AdaptedLinear:
    """``x [T, K] -> [T, N]`` for a batch of mixed adapters; ``index`` counts projections."""

    def __init__(
        self,
        ops: Ops,
        weight: Weight,
        bias: Tensor | None,
        tables: LoraTables,
        adjustments: AdjustmentTable,
        index: int,
    ) -> None:
        self._ops = ops
        self._weight = weight
        self._bias = bias
        self._table = tables.projection(index)
        self._adjustments = adjustments
        self._index = index

    def __call__(self, x: Tensor, plan: Any | None, adjusted: Sequence[Segment] = ()) -> Tensor:
        """``plan`` is the step's ``plan_lora``, None in a step without adapters.

        ``adjusted`` are the segments of versions with adjustments, empty in nearly every step.
        """
        lora = None if plan is None else LoraInput(self._table, plan)
        if adjusted:
            found = self._adjustments.at(self._index, adjusted)
            if found:
                return self._adjusted(x, lora, found)
        return self._ops.linear(x, self._weight, self._bias, lora)

    def _adjusted(self, x: Tensor, lora: LoraInput | None, adjusted: list[Adjusted]) -> Tensor:
        x = scale_inputs(x, adjusted)
        y = self._ops.linear(x, self._weight, self._bias, lora)
        adjust_outputs(y, x, adjusted, self._ops)
        return y
