"""One stacked matrix of the resident base, to multiply with and to decode; never written."""

import torch
from torch import Tensor
from torch.nn import functional

from multiflora.kernels.ops import DenseWeight, Ops, Weight

# Up to here a backend's own NF4 matmul beats decoding the matrix (CPU core: 128 rows 1.1 to 2.5
# times as fast as decode and GEMM, 512 rows equal, 2048 rows 0.5 to 0.9 times).
FUSED_ROWS = 256
# Rows of the matrix that are squared at a time.
_NORM_ROWS = 1024


class FrozenWeight:
    """W [N, K] with its bias; the dense form of a quantized one lives inside one call."""

    def __init__(self, ops: Ops, weight: Weight, bias: Tensor | None) -> None:
        self.bias = bias
        self._ops = ops
        self._weight = weight
        self._norms: Tensor | None = None

    def multiply(self, x: Tensor) -> Tensor:
        """``x @ W.T + bias``."""
        if self._is_dense(x.shape[0]):
            return functional.linear(x, self.dense(x.dtype), self.bias)
        return self._ops.linear(x, self._weight, self.bias, None)

    def products(self, *inputs: Tensor) -> list[Tensor]:
        """``x @ W.T`` of every x, without the bias; W is decoded once."""
        lengths = [x.shape[0] for x in inputs]
        if self._is_dense(sum(lengths)):
            matrix = self.dense(inputs[0].dtype)
            return [functional.linear(x, matrix) for x in inputs]
        return list(self._ops.linear(torch.cat(inputs), self._weight, None, None).split(lengths))

    def input_gradients(self, *gradients: Tensor) -> list[Tensor]:
        """``dy @ W`` of every dy; W is decoded once at most."""
        lengths = [dy.shape[0] for dy in gradients]
        stacked = gradients[0] if len(gradients) == 1 else torch.cat(gradients)
        return list(self._ops.input_gradient(stacked, self._weight).split(lengths))

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The matrix [N, K]; decoded for this call if it is quantized."""
        if isinstance(self._weight, DenseWeight):
            return self._weight.data
        return self._ops.unpack_nf4(self._weight, dtype)

    @torch.no_grad()
    def row_norms(self, dtype: torch.dtype) -> Tensor:
        """``|W|`` of every row, float32 [N]; computed at the first call, from W in ``dtype``."""
        if self._norms is None:
            rows = self.dense(dtype).split(_NORM_ROWS)
            self._norms = torch.cat(
                [torch.linalg.vector_norm(part.float(), dim=1) for part in rows]
            )
        return self._norms

    def _is_dense(self, num_rows: int) -> bool:
        return isinstance(self._weight, DenseWeight) or num_rows > FUSED_ROWS
