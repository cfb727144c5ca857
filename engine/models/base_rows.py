"""The resident base as adapters see it when they are loaded: rows of weights, and biases."""

import torch
from torch import Tensor

from multiflora.kernels.ops import DenseWeight, Ops, Weight

from .decoder import PROJECTIONS_PER_LAYER
from .weights import BaseWeights


class BaseRows:
    """`BaseView` by the order of ``ModelConfig.adapter_projections``."""

    def __init__(self, weights: BaseWeights, ops: Ops) -> None:
        self._weights = weights
        self._ops = ops
        self._head = PROJECTIONS_PER_LAYER * len(weights.layers)

    def rows(self, index: int, start: int, stop: int) -> Tensor:
        weight = self._weight(index)
        if isinstance(weight, DenseWeight):
            return weight.data[start:stop].float()
        part = self._ops.slice_nf4(weight, start, stop)
        return self._ops.unpack_nf4(part, torch.float32)

    def bias(self, index: int) -> Tensor | None:
        if index >= self._head:
            return None
        layer = self._weights.layers[index // PROJECTIONS_PER_LAYER]
        biases = (layer.qkv_bias, layer.o_bias, layer.gate_up_bias, layer.down_bias)
        return biases[index % PROJECTIONS_PER_LAYER]

    def _weight(self, index: int) -> Weight:
        if index >= self._head:
            is_head = index == self._head
            return self._weights.head if is_head else DenseWeight(self._weights.embedding)
        layer = self._weights.layers[index // PROJECTIONS_PER_LAYER]
        return (layer.qkv, layer.o, layer.gate_up, layer.down)[index % PROJECTIONS_PER_LAYER]
