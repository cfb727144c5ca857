"""How tensors are divided among the safetensors files of a checkpoint, before any is made."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from multiflora.adapters.tensor_file import TensorSpec

SINGLE_NAME = "model.safetensors"


@dataclass(slots=True)
class OutputShard:
    """One file; ``specs`` by the names of its tensors."""

    name: str = SINGLE_NAME
    specs: dict[str, TensorSpec] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        return sum(spec.num_bytes for spec in self.specs.values())


def plan_shards(
    groups: Iterable[Mapping[str, TensorSpec]], *, max_bytes: int
) -> tuple[OutputShard, ...]:
    """Fill shards of at most ``max_bytes`` in order; a group is never divided.

    A group larger than that gets a shard of its own.
    """
    shards = [OutputShard()]
    for group in groups:
        size = sum(spec.num_bytes for spec in group.values())
        if shards[-1].specs and shards[-1].num_bytes + size > max_bytes:
            shards.append(OutputShard())
        shards[-1].specs.update(group)
    if len(shards) > 1:
        for number, shard in enumerate(shards, start=1):
            shard.name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
    return tuple(shards)


def index_of(shards: Iterable[OutputShard]) -> dict[str, Any]:
    """What ``model.safetensors.index.json`` holds."""
    shards = tuple(shards)
    return {
        "metadata": {"total_size": sum(shard.num_bytes for shard in shards)},
        "weight_map": {name: shard.name for shard in shards for name in sorted(shard.specs)},
    }
