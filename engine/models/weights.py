"""The resident base: what the decoder multiplies with, layer by layer."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

from torch import Tensor

from multiflora.kernels.ops import DenseWeight, Nf4Weight, Weight


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One decoder layer. Biases and norms are in the model's dtype."""

    qkv: Weight  # [(Q + 2 G) * D, H]
    qkv_bias: Tensor | None
    o: Weight  # [H, Q * D]
    o_bias: Tensor | None
    gate_up: Weight  # [2 * I, H]
    gate_up_bias: Tensor | None
    down: Weight  # [H, I]
    down_bias: Tensor | None
    input_norm: Tensor
    post_attention_norm: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseWeights:
    """A whole base. ``digest`` identifies it whatever its dtype, device, backend and sharding.

    It is a sha256 over the config and, in the decoder's order, every tensor as the checkpoint
    stores it: an NF4 matrix as its codes and scales, before double quantization if it was
    quantized here (bitsandbytes' mean of the scales depends on the number of threads).
    """

    embedding: Tensor  # [V, H]; as the head perhaps narrower than the model's dtype
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    head: Weight  # [V, H]; shares the embedding's memory when tied and not quantized
    digest: str

    @property
    def num_bytes(self) -> int:
        """Resident bytes; memory that the head shares with the embedding counts once."""
        parts = {part.data_ptr(): part for _, part in self.tensors()}
        return sum(part.numel() * part.element_size() for part in parts.values())

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every resident tensor with a name; a packed weight yields one per part."""
        for name, value in self.named_parts():
            match value:
                case Nf4Weight():
                    yield from ((f"{name}.{part}", t) for part, t in value.tensors.items())
                case DenseWeight():
                    yield name, value.data
                case _:
                    yield name, value

    def named_parts(self) -> Iterator[tuple[str, Weight | Tensor]]:
        """Every weight and tensor under the name it has in the prepared form."""
        yield "embedding", self.embedding
        for index, layer in enumerate(self.layers):
            for field in fields(layer):
                value = getattr(layer, field.name)
                if value is not None:
                    yield f"layers.{index}.{field.name}", value
        yield "norm", self.norm
        yield "head", self.head
