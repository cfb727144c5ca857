"""The resident base as a trainer sees it: embedding, layers, last norm and head."""

import torch
from torch import Tensor

from multiflora.kernels.ops import Ops, RopeTable

from ..models.config import ModelConfig
from ..models.decoder import PROJECTIONS_PER_LAYER
from ..models.weights import BaseWeights
from .attention import plan_attention
from .head import TrainingHead
from .layer import LayerContext, TrainingLayer
from .norm import rms_norm
from .packed_batch import PackedBatch


class TrainingNetwork:
    """Differentiable functions over weights that serving goes on using; it never writes them."""

    def __init__(
        self, config: ModelConfig, weights: BaseWeights, ops: Ops, rope: RopeTable
    ) -> None:
        self.config = config
        self.digest = weights.digest
        self.layers = tuple(
            TrainingLayer(config, index, layer, ops) for index, layer in enumerate(weights.layers)
        )
        self.head = TrainingHead(ops, weights.head)
        self._weights = weights
        self._rope = rope

    @property
    def device(self) -> torch.device:
        return self._weights.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """Of activations, norms and biases; the embedding and the head may be narrower."""
        return self._weights.norm.dtype

    @property
    def max_positions(self) -> int:
        """The longest sequence."""
        return self._rope.cos.shape[0]

    def context(self, batch: PackedBatch) -> LayerContext:
        """What the layers need besides the residual stream."""
        return LayerContext(
            self._rope.cos[batch.positions],
            self._rope.sin[batch.positions],
            {
                window: plan_attention(batch.spans, window, self.device)
                for window in set(self.config.windows or (None,))
            },
        )

    def row_norms(self, projection: int) -> Tensor:
        """``|W|`` of the rows of a projection of the base, float32 [N]."""
        layer, place = divmod(projection, PROJECTIONS_PER_LAYER)
        return self.layers[layer].row_norms(place, self.dtype)

    def embed(self, batch: PackedBatch) -> Tensor:
        """The residual stream before the first layer, [T, H]."""
        found = torch.nn.functional.embedding(batch.ids, self._weights.embedding)
        return found.to(self.dtype)

    def norm(self, x: Tensor) -> Tensor:
        """The last norm of rows [P, H] of the residual stream; differentiable."""
        return rms_norm(x, self._weights.norm, self.config.norm_eps)
