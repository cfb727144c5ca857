"""What a run will take of memory, before anything is allocated. Imports no torch.

Everything is counted that is alive at once, tensor by tensor, for a micro-batch that is full; what
a library keeps for itself inside one call is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from multiflora.adapters.layout import ProjectionLayout, plan_layout
from multiflora.adapters.target import Projection

from ..models.config import ModelConfig
from ..models.size import ITEM_SIZES
from .config import TrainingSettings
from .head_size import chunk_rows
from .optimizer_size import moment_bytes, scratch_bytes

# What decoding an NF4 matrix allocates per weight on the way to the model's dtype.
DECODE_BYTES_PER_WEIGHT = {"cpu": 6, "torch": 13, "triton": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingMemory:
    """Bytes by part. ``boundaries`` are the kept residual streams, ``layer`` is one layer on its
    way down, ``loss`` one chunk of logits and the gradients of all predictions; the last two never
    exist together, nor with ``optimizer``, what moving the factors takes. ``norms`` are those of
    the base's rows, which DoRA keeps. ``host`` is the copy that a checkpoint is written from, and
    moments that are paged.
    """

    factors: int
    moments: int
    gradients: int
    norms: int
    boundaries: int
    layer: int
    loss: int
    optimizer: int
    host: int

    @property
    def device_bytes(self) -> int:
        """The most that is alive at once beside the base."""
        state = self.factors + self.moments + self.gradients + self.norms
        return state + max(self.boundaries + max(self.layer, self.loss), self.optimizer)


def estimate_memory(
    model: ModelConfig,
    settings: TrainingSettings,
    *,
    dtype: str,
    kernels: str,
    is_quantized: bool = True,
) -> TrainingMemory:
    """The memory of a run on a base with activations of ``dtype``; ``kernels`` is ``Ops.NAME``.

    Raises ``ValueError`` for LoRA settings that do not suit the base.
    """
    projections = model.projections()
    layout = plan_layout(projections, settings.lora.modules(model))
    per_layer = len(projections) // model.num_layers
    lowest = layout.projections[0].index // per_layer
    ranks, scaled = [0] * model.num_layers, [0] * model.num_layers
    for planned in layout.projections:
        ranks[planned.index // per_layer] += planned.num_ranks
        if settings.lora.use_dora:
            scaled[planned.index // per_layer] += planned.out_features
    tokens, item = settings.batch.micro_batch_tokens, ITEM_SIZES[dtype]
    flat, optimizer = 4 * layout.num_elements, settings.optimizer
    moments = moment_bytes(optimizer, layout.num_elements)
    return TrainingMemory(
        factors=(1 + _num_held(settings)) * flat,
        moments=0 if optimizer.is_paged else moments,
        gradients=flat,
        norms=4 * sum(scaled),
        boundaries=(model.num_layers - lowest + 1) * tokens * model.hidden_size * item,
        layer=_layer_bytes(model, settings, max(ranks), max(scaled), item=item)
        + 4 * max(map(_num_factors, layout.projections))
        + (_decoded_bytes(projections, item, kernels) if is_quantized else 0),
        loss=_loss_bytes(model, tokens, item, kernels) + _anchor_bytes(model, settings, item),
        optimizer=scratch_bytes(optimizer, layout.num_elements),
        host=flat + moments + (moments if optimizer.is_paged else 0),
    )


def _layer_bytes(
    model: ModelConfig, settings: TrainingSettings, ranks: int, scaled: int, *, item: int
) -> int:
    """What one layer keeps for its backward, and the gradients in flight, per token row.

    DoRA keeps ``scaled`` outputs as they were before they were scaled.
    """
    hidden, inner = model.hidden_size, model.intermediate_size
    qkv, rotated = model.q_size + 2 * model.kv_size, model.q_size + model.kv_size
    normed_heads = rotated if model.qk_norm else 0
    kept = 4 * hidden + qkv + normed_heads + rotated + 2 * model.q_size + 3 * inner + ranks + scaled
    # The gated activation holds dY, both halves of its gradient and a product.
    in_flight = 2 * hidden + 4 * inner
    widest_input = max(hidden, model.q_size, inner)
    masks = (2 * hidden + model.q_size + inner + widest_input) if settings.lora.dropout else 0
    # Rotary angles, and the scales of two norms and of the heads', in float32.
    wide = 2 * model.head_dim + 2 * hidden + 2
    tokens = settings.batch.micro_batch_tokens
    return tokens * ((kept + in_flight + masks) * item + wide * 4)


def _num_held(settings: TrainingSettings) -> int:
    """Buffers of the factors' size for an anchor's, and for which ranks are fresh."""
    replay = settings.replay
    has_anchor = replay.kl_weight > 0 and replay.kl_to == "start"
    return has_anchor + (settings.continual.mode == "merge")


def _anchor_bytes(model: ModelConfig, settings: TrainingSettings, item: int) -> int:
    """Normed rows of the anchor and the slopes of the divergence, in pieces and whole."""
    if not settings.replay.kl_weight:
        return 0
    return settings.batch.micro_batch_tokens * model.hidden_size * 4 * item


def _num_factors(projection: ProjectionLayout) -> int:
    """Of one projection: their gradients exist a moment before they are added to the flat one."""
    b = sum(part.module.rank * part.width for part in projection.parts)
    return projection.num_ranks * projection.in_features + b


def _decoded_bytes(projections: Sequence[Projection], item: int, kernels: str) -> int:
    largest = max(p.out_features * p.in_features for p in projections)
    return largest * (item + DECODE_BYTES_PER_WEIGHT[kernels])


def _loss_bytes(model: ModelConfig, tokens: int, item: int, kernels: str) -> int:
    """Rows, normed rows, their slopes (in pieces and whole) and gradients; one chunk of logits,
    its float32 form and its softmax."""
    rows = min(tokens, chunk_rows(model.vocab_size, kernels))
    logits = rows * model.vocab_size * (2 * item + 8)
    return tokens * model.hidden_size * (6 * item + 8) + logits
