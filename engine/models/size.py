"""How many bytes a base will take, before anything of it is loaded. Imports no torch."""

import math
from dataclasses import dataclass
from pathlib import Path

from multiflora.adapters.target import Projection

from ..config import BaseConfig
from .config import EMBEDDING, HEAD, ModelConfig
from .shard import find_shards, read_shard

ITEM_SIZES = {"bfloat16": 2, "float16": 2, "float32": 4}
# Half a byte per code and one float32 scale per 64 weights.
NF4_BYTES_PER_WEIGHT = 0.5 + 4 / 64
_ABSMAX = ".weight.absmax"


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
        cls,
        base: BaseConfig,
        model: ModelConfig,
        dtype: str,
        checkpoint: Path | None,
        *,
        narrow_tables: bool = False,
    ) -> "BaseSize":
        """Compute from the config, and from the headers of ``checkpoint`` where it is given.

        ``narrow_tables`` tells whether an embedding or a head that is stored in bfloat16 stays so.
        """
        item = ITEM_SIZES[dtype]
        table = model.vocab_size * model.hidden_size
        stored = _stored_dtypes(checkpoint)
        quantized = {name.removesuffix(".absmax") for name in stored if name.endswith(_ABSMAX)}

        def table_bytes(name: str) -> int:
            is_narrow = narrow_tables and stored.get(name) == "BF16"
            return table * (min(item, 2) if is_narrow else item)

        head = 0
        if not model.tie_embeddings or base.quantize_head:
            is_nf4 = base.quantize_head or HEAD in quantized
            head = math.ceil(table * NF4_BYTES_PER_WEIGHT) if is_nf4 else table_bytes(HEAD)
        small = model.num_layers * (4 * model.hidden_size + 2 * model.intermediate_size) * item
        linears = sum(
            _projection_bytes(base, model, projection, item, quantized)
            for projection in model.projections()
        )
        has_embedding = EMBEDDING in stored or not model.tie_embeddings
        return cls(linears + small, table_bytes(EMBEDDING if has_embedding else HEAD), head)


def _stored_dtypes(checkpoint: Path | None) -> dict[str, str]:
    """Every tensor's dtype, from the headers; reading them also finds truncated files early."""
    if checkpoint is None:
        return {}
    shards = [read_shard(path) for path in find_shards(checkpoint)]
    return {name: entry.dtype for shard in shards for name, entry in shard.entries.items()}


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
