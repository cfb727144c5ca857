"""One pre-norm decoder for every family: grouped-query attention, gated MLP, a few flags.

Everything a layer needs arrives as an argument; there is no global forward context.
"""

from collections.abc import Sequence

from torch import Tensor

from multiflora.adapters.adjustment_table import AdjustmentTable
from multiflora.adapters.linear import AdaptedLinear
from multiflora.kernels.adjustment import adjust_embedding
from multiflora.kernels.ops import HeadNorm, HeadShape, LoraTables, Ops

from ..forward_batch import ForwardBatch
from .config import ModelConfig
from .weights import BaseWeights, LayerWeights

# qkv, o, gate_up and down, in the order of ``ModelConfig.projections``; the head and the embedding
# come after the last layer.
PROJECTIONS_PER_LAYER = 4
KvCache = tuple[Tensor, Tensor]  # keys and values of one layer, each [num_blocks, P, G, D]


class Decoder:
    """Token ids to hidden states to logits, through one backend.

    ``adjustments`` are what resident versions change beside deltas; None where they cannot.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: BaseWeights,
        ops: Ops,
        tables: LoraTables,
        adjustments: AdjustmentTable | None = None,
    ) -> None:
        self._config = config
        self._weights = weights
        self.ops = ops
        self._adjustments = adjustments or AdjustmentTable()
        self._layers = [
            DecoderLayer(config, index, layer, ops, tables, self._adjustments)
            for index, layer in enumerate(weights.layers)
        ]
        head = PROJECTIONS_PER_LAYER * len(self._layers)
        self._head = AdaptedLinear(ops, weights.head, None, tables, self._adjustments, head)
        self._embedding_index = head + 1

    def forward(self, batch: ForwardBatch, caches: Sequence[KvCache]) -> Tensor:
        """Hidden states after the last norm, [T, H]; keys and values are written to ``caches``."""
        residual = self._embed(batch)
        x = self.ops.rms_norm(residual, self._layers[0].input_norm, self._config.norm_eps)
        for layer, cache in zip(self._layers, caches, strict=True):
            x, residual = layer.forward(x, residual, batch, cache)
            following = layer.index + 1
            weight = (
                self._layers[following].input_norm
                if following < len(self._layers)
                else self._weights.norm
            )
            x, residual = self.ops.add_rms_norm(x, residual, weight, self._config.norm_eps)
        return x

    def logits(self, hidden: Tensor, batch: ForwardBatch) -> Tensor:
        """float32 [B, V] from the hidden states [B, H] of the batch's sample rows."""
        return self._head(hidden, batch.head_lora, batch.adjusted_samples).float()

    def _embed(self, batch: ForwardBatch) -> Tensor:
        hidden = self.ops.embedding(batch.ids, self._weights.embedding)
        hidden = hidden.to(self._weights.norm.dtype)
        if batch.adjusted:
            adjusted = self._adjustments.at(self._embedding_index, batch.adjusted)
            adjust_embedding(hidden, batch.ids, adjusted, self.ops)
        return hidden


class DecoderLayer:
    """Attention and MLP; the norms around them are applied by whoever adds the residual."""

    def __init__(
        self,
        config: ModelConfig,
        index: int,
        weights: LayerWeights,
        ops: Ops,
        tables: LoraTables,
        adjustments: AdjustmentTable,
    ) -> None:
        self.index = index
        self.input_norm = weights.input_norm
        self._config = config
        self._ops = ops
        self._weights = weights
        self._window = config.windows[index] if config.windows else None
        self._heads = HeadShape(config.num_heads, config.num_kv_heads, config.head_dim)
        self._head_norm = (
            HeadNorm(weights.q_norm, weights.k_norm, config.norm_eps)
            if weights.q_norm is not None and weights.k_norm is not None
            else None
        )
        parts = (
            (weights.qkv, weights.qkv_bias),
            (weights.o, weights.o_bias),
            (weights.gate_up, weights.gate_up_bias),
            (weights.down, weights.down_bias),
        )
        self._qkv, self._o, self._gate_up, self._down = (
            AdaptedLinear(
                ops, weight, bias, tables, adjustments, PROJECTIONS_PER_LAYER * index + place
            )
            for place, (weight, bias) in enumerate(parts)
        )

    def forward(
        self, x: Tensor, residual: Tensor, batch: ForwardBatch, cache: KvCache
    ) -> tuple[Tensor, Tensor]:
        """Normed input and residual [T, H] -> what to add next, and the residual so far."""
        attended = self._attend(x, batch, cache)
        x, residual = self._ops.add_rms_norm(
            attended, residual, self._weights.post_attention_norm, self._config.norm_eps
        )
        inner = self._ops.silu_mul(self._gate_up(x, batch.lora, batch.adjusted))
        return self._down(inner, batch.lora, batch.adjusted), residual

    def _attend(self, x: Tensor, batch: ForwardBatch, cache: KvCache) -> Tensor:
        q = self._ops.rotate_and_cache(
            self._qkv(x, batch.lora, batch.adjusted),
            self._heads,
            self._head_norm,
            batch.rope,
            batch.positions,
            cache,
            batch.cache_rows,
        )
        plan = batch.attention[self._window]
        attended = self._ops.paged_attention(q, *cache, plan, self._heads.size**-0.5)
        return self._o(attended.flatten(1), batch.lora, batch.adjusted)
