"""`ModelConfig`: everything the decoder needs to know about a base. Imports no torch."""

from dataclasses import dataclass, field
from typing import Literal

from multiflora.adapters.target import Projection, TargetModule

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary embedding and its context-extension variant, in the words of Hugging Face configs."""

    theta: float = 10_000.0
    kind: Literal["default", "linear", "dynamic", "llama3", "yarn"] = "default"
    factor: float = 1.0
    original_max_position: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One pre-norm decoder with grouped-query attention and a gated MLP."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    max_position: int
    rope: RopeConfig = field(default_factory=RopeConfig)
    tie_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    # One entry per layer: the number of positions a query sees, or None for all of them.
    windows: tuple[int | None, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    checkpoint_dtype: str = "bfloat16"
    # The checkpoint is already in bitsandbytes' NF4.
    prequantized: bool = False

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def max_context(self) -> int:
        """The longest context that can be asked for: what rope scaling reaches, if that is more.

        Checkpoints differ in whether ``max_position`` already includes the factor.
        """
        if self.rope.kind not in ("linear", "dynamic", "yarn"):
            return self.max_position
        original = self.rope.original_max_position or self.max_position
        return max(self.max_position, int(original * self.rope.factor))

    @property
    def layer_weights(self) -> int:
        """Elements of one layer's matrices."""
        return sum(p.in_features * p.out_features for p in self._layer(0))

    def projections(self) -> tuple[Projection, ...]:
        """All stacked matmuls of the layers, one after the other, with their slices' PEFT paths."""
        return tuple(p for layer in range(self.num_layers) for p in self._layer(layer))

    def adapter_projections(self) -> tuple[Projection, ...]:
        """All that an adapter can attach to: ``projections``, then the head, then the embedding."""
        vocabulary, hidden = self.vocab_size, self.hidden_size
        head = TargetModule("lm_head", vocabulary, hidden, kind="head")
        embedding = TargetModule("model.embed_tokens", hidden, vocabulary, kind="embedding")
        return (
            *self.projections(),
            Projection(self.num_layers, "head", (head,)),
            Projection(self.num_layers, "embedding", (embedding,)),
        )

    def dense_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of a checkpoint that is no linear's weight, by name; a tied head is none."""
        table = (self.vocab_size, self.hidden_size)
        shapes: dict[str, tuple[int, ...]] = {EMBEDDING: table}
        for layer in range(self.num_layers):
            shapes |= self._dense_layer(layer)
        shapes["model.norm.weight"] = (self.hidden_size,)
        return shapes if self.tie_embeddings else shapes | {HEAD: table}

    def _dense_layer(self, layer: int) -> dict[str, tuple[int, ...]]:
        prefix = f"model.layers.{layer}"
        norms = ("input_layernorm", "post_attention_layernorm")
        shapes: dict[str, tuple[int, ...]] = {
            f"{prefix}.{norm}.weight": (self.hidden_size,) for norm in norms
        }
        if self.qk_norm:
            for norm in ("q_norm", "k_norm"):
                shapes[f"{prefix}.self_attn.{norm}.weight"] = (self.head_dim,)
        biased = {
            "qkv": self.qkv_bias,
            "o": self.o_bias,
            "gate_up": self.mlp_bias,
            "down": self.mlp_bias,
        }
        for projection in self._layer(layer):
            for part in projection.slices if biased[projection.kind] else ():
                shapes[f"{part.path}.bias"] = (part.out_features,)
        return shapes

    def _layer(self, layer: int) -> tuple[Projection, ...]:
        attention = f"model.layers.{layer}.self_attn"
        mlp = f"model.layers.{layer}.mlp"
        hidden, inner = self.hidden_size, self.intermediate_size
        qkv_bias, o_bias, mlp_bias = self.qkv_bias, self.o_bias, self.mlp_bias
        q = TargetModule(f"{attention}.q_proj", self.q_size, hidden, qkv_bias)
        k = TargetModule(f"{attention}.k_proj", self.kv_size, hidden, qkv_bias)
        v = TargetModule(f"{attention}.v_proj", self.kv_size, hidden, qkv_bias)
        o = TargetModule(f"{attention}.o_proj", hidden, self.q_size, o_bias)
        gate = TargetModule(f"{mlp}.gate_proj", inner, hidden, mlp_bias)
        up = TargetModule(f"{mlp}.up_proj", inner, hidden, mlp_bias)
        down = TargetModule(f"{mlp}.down_proj", hidden, inner, mlp_bias)
        return (
            Projection(layer, "qkv", (q, k, v)),
            Projection(layer, "o", (o,)),
            Projection(layer, "gate_up", (gate, up)),
            Projection(layer, "down", (down,)),
        )
