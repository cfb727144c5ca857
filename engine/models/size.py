"""How many bytes a base will take, before anything of it is loaded. Imports no torch."""

import math
from dataclasses import dataclass
from pathlib import Path

from multiflora.adapters.target import Projection

from ..config import BaseConfig
from .config import ModelConfig
from .shard import find_shards, read_shard

ITEM_SIZES = {"bfloat16": 2, "float16": 2, "float32": 4}
# Half a byte per code and one float32 scale per 64 weights.
NF4_BYTES_PER_WEIGHT = 0.5 + 4 / 64


@dataclass(frozen=True, slots=True)
class BaseSize:
    """Resident bytes of a base, by part; norms and biases count with the linears."""

    linears: int
    embedding: int
    head: int

    @property
    def total(self) -> int:
        return self.linears + self.embedding + self.head

    @classmethod
    def measure(
        cls, base: BaseConfig, model: ModelConfig, dtype: str, checkpoint: Path | None
    ) -> "BaseSize":
        """Compute from the config, and from the headers of ``checkpoint`` where it is given."""
        item = ITEM_SIZES[dtype]
        table = model.vocab_size * model.hidden_size
        quantized = _quantized_names(checkpoint)
        head = 0
        if not model.tie_embeddings or base.quantize_head:
            is_nf4 = base.quantize_head or "lm_head.weight" in quantized
            head = math.ceil(table * (NF4_BYTES_PER_WEIGHT if is_nf4 else item))
        small = model.num_layers * (4 * model.hidden_size + 2 * model.intermediate_size) * item
        linears = sum(
            _projection_bytes(base, model, projection, item, quantized)
            for projection in model.projections()
        )
        return cls(linears + small, table * item, head)


def _quantized_names(checkpoint: Path | None) -> set[str]:
    """Weights stored in NF4, from the headers; reading them also finds truncated files early."""
    if checkpoint is None:
        return set()
    names = (name for path in find_shards(checkpoint) for name in read_shard(path).entries)
    return {name.removesuffix(".absmax") for name in names if name.endswith(".weight.absmax")}


def _projection_bytes(
    base: BaseConfig, model: ModelConfig, projection: Projection, item: int, names: set[str]
) -> int:
    weights = projection.out_features * projection.in_features
    # A pre-quantized checkpoint may leave modules dense; without its headers none is assumed.
    left_dense = (
        model.prequantized
        and names
        and not all(f"{part.path}.weight" in names for part in projection.slices)
    )
    if base.quantization == "none" or left_dense:
        return weights * item
    return math.ceil(weights * NF4_BYTES_PER_WEIGHT)
