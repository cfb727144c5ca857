"""All that the angles between deltas tell, from products of their thin factors."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from .delta import Delta


class Gram:
    """Inner products of n deltas of one shape, in float64 and without a dense matrix.

    ``inner`` [n, n] holds the Frobenius products <dW_i, dW_j>.
    """

    def __init__(self, deltas: Sequence[Delta]) -> None:
        outputs = torch.cat([delta.b for delta in deltas], dim=1).double()  # [N, R]
        inputs = torch.cat([delta.a for delta in deltas]).double()  # [R, K]
        self._outputs = outputs.T @ outputs
        self._inputs = inputs @ inputs.T
        ranks = [delta.rank for delta in deltas]
        stops = torch.tensor(ranks).cumsum(0).tolist()
        self._parts = [slice(stop - r, stop) for r, stop in zip(ranks, stops, strict=True)]
        owner = torch.repeat_interleave(torch.eye(len(ranks)).double(), torch.tensor(ranks), dim=0)
        self.inner = owner.T @ (self._outputs * self._inputs) @ owner

    @cached_property
    def norms(self) -> list[float]:
        return self.inner.diagonal().clamp(min=0).sqrt().tolist()

    def cosine(self, one: int, other: int) -> float:
        """0 where either delta is zero."""
        return cosine(self.inner, one, other)

    def norm_of(self, coefficients: Sequence[float]) -> float:
        """Norm of the weighted sum of all deltas."""
        weights = torch.tensor(coefficients, dtype=torch.float64)
        return float((weights @ self.inner @ weights).clamp(min=0).sqrt())

    def overlap(self, one: int, other: int) -> float:
        """How far the smaller of two deltas' output spaces lies in the larger one, in [0, 1].

        The mean squared cosine of the principal angles; random spaces have about R / N.
        """
        return self._overlap(self._outputs, self._output_bases, one, other)

    def input_overlap(self, one: int, other: int) -> float:
        """As ``overlap``, for the spaces of inputs that the deltas read."""
        return self._overlap(self._inputs, self._input_bases, one, other)

    @cached_property
    def _output_bases(self) -> list[Tensor]:
        return [_whitening(self._outputs[part, part]) for part in self._parts]

    @cached_property
    def _input_bases(self) -> list[Tensor]:
        return [_whitening(self._inputs[part, part]) for part in self._parts]

    def _overlap(self, products: Tensor, bases: list[Tensor], one: int, other: int) -> float:
        # ||Q_l^T Q_r||^2 of orthonormal bases, each being the factor times its whitening.
        whiten_left, whiten_right = bases[one], bases[other]
        size = min(whiten_left.shape[1], whiten_right.shape[1])
        if size == 0:
            return 0.0
        between = products[self._parts[one], self._parts[other]]
        shared = whiten_left.T @ between @ whiten_right
        return min(1.0, float(shared.square().sum()) / size)


def cosine(inner: Tensor, one: int, other: int) -> float:
    """Of two deltas, by their inner products [n, n]; 0 where either is zero."""
    norms = (inner[one, one] * inner[other, other]).sqrt()
    return max(-1.0, min(1.0, float(inner[one, other] / norms))) if norms > 0 else 0.0


def _whitening(products: Tensor) -> Tensor:
    """[R, r] that turns vectors with these inner products into r orthonormal ones."""
    values, vectors = torch.linalg.eigh(products)
    is_real = values > values.abs().max() * 1e-12 if len(values) else values > 0
    return vectors[:, is_real] / values[is_real].sqrt()
