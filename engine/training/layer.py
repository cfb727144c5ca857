"""One decoder layer on the resident weights, differentiable in its input and in the factors."""

from dataclasses import dataclass

import torch
from torch import Tensor

from multiflora.kernels.ops import HeadShape, Ops
from multiflora.kernels.torch_ops.rotary import rotate, split_heads

from ..models.config import ModelConfig
from ..models.decoder import PROJECTIONS_PER_LAYER
from ..models.weights import LayerWeights
from .activation import silu_mul
from .attention import AttentionPlan, attend
from .dropout import Dropout
from .factors import TrainedFactors
from .linear import FrozenLinear
from .norm import rms_norm
from .projection_factors import ProjectionFactors


@dataclass(frozen=True, slots=True)
class LayerContext:
    """What all layers of a micro-batch share: rotary angles of its rows, and who sees whom."""

    cos: Tensor  # float32 [T, D / 2]
    sin: Tensor
    attention: dict[int | None, AttentionPlan]


@dataclass(frozen=True, slots=True)
class _Factors:
    """The factors of one projection with the dropout of their input."""

    factors: ProjectionFactors | None
    dropout: Dropout | None


class TrainingLayer:
    """Attention and MLP with their norms and residuals."""

    def __init__(self, config: ModelConfig, index: int, weights: LayerWeights, ops: Ops) -> None:
        self.index = index
        self._weights = weights
        self._eps = config.norm_eps
        self._heads = HeadShape(config.num_heads, config.num_kv_heads, config.head_dim)
        self._window = config.windows[index] if config.windows else None
        self._qkv = FrozenLinear(ops, weights.qkv, weights.qkv_bias)
        self._o = FrozenLinear(ops, weights.o, weights.o_bias)
        self._gate_up = FrozenLinear(ops, weights.gate_up, weights.gate_up_bias)
        self._down = FrozenLinear(ops, weights.down, weights.down_bias)

    def row_norms(self, place: int, dtype: torch.dtype) -> Tensor:
        """Of the base's matrix at one of the layer's projections: float32 [N]."""
        linears = (self._qkv, self._o, self._gate_up, self._down)
        return linears[place].weight.row_norms(dtype)

    def forward(
        self,
        x: Tensor,
        context: LayerContext,
        factors: TrainedFactors | None,
        dropout: Dropout | None,
    ) -> Tensor:
        """The residual stream before this layer [T, H] -> after it."""
        qkv, o, gate_up, down = (
            self._at(place, factors, dropout) for place in range(PROJECTIONS_PER_LAYER)
        )
        normed = rms_norm(x, self._weights.input_norm, self._eps)
        attended = self._attend(self._qkv(normed, qkv.factors, qkv.dropout), context)
        x = x + self._o(attended, o.factors, o.dropout)
        normed = rms_norm(x, self._weights.post_attention_norm, self._eps)
        inner = silu_mul(self._gate_up(normed, gate_up.factors, gate_up.dropout))
        return x + self._down(inner, down.factors, down.dropout)

    def _at(self, place: int, factors: TrainedFactors | None, dropout: Dropout | None) -> _Factors:
        projection = PROJECTIONS_PER_LAYER * self.index + place
        return _Factors(
            factors.projection(projection) if factors else None,
            dropout.at(projection) if dropout else None,
        )

    def _attend(self, qkv: Tensor, context: LayerContext) -> Tensor:
        q, k, v = split_heads(qkv, self._heads)
        if self._weights.q_norm is not None and self._weights.k_norm is not None:
            q = rms_norm(q, self._weights.q_norm, self._eps)
            k = rms_norm(k, self._weights.k_norm, self._eps)
        q, k = rotate(q, context.cos, context.sin), rotate(k, context.cos, context.sin)
        plan = context.attention[self._window]
        return attend(q, k, v, plan, self._heads.size**-0.5).flatten(1)
