"""Every tensor is in exactly one file, and files are as full as groups allow."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from multiflora.adapters.tensor_file import TensorSpec
from multiflora.engine.export.sharding import SINGLE_NAME, index_of, plan_shards


def group(number: int, sizes: list[int]) -> dict[str, TensorSpec]:
    return {f"{number}.{i}": TensorSpec(torch.uint8, (size,)) for i, size in enumerate(sizes)}


@given(
    sizes=st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=3), min_size=1, max_size=20),
    limit=st.integers(1, 120),
)
def test_shards_partition_the_groups(sizes: list[list[int]], limit: int) -> None:
    groups = [group(number, found) for number, found in enumerate(sizes)]
    shards = plan_shards(groups, max_bytes=limit)
    together = {name: spec for shard in shards for name, spec in shard.specs.items()}
    assert together == {name: spec for found in groups for name, spec in found.items()}
    assert sum(len(shard.specs) for shard in shards) == len(together)
    for shard in shards:
        numbers = {name.split(".")[0] for name in shard.specs}
        assert shard.num_bytes <= limit or len(numbers) == 1
    for found in groups:
        assert sum(not found.keys().isdisjoint(shard.specs) for shard in shards) == 1
    for left, right in pairwise(shards):
        first = next(iter(right.specs)).split(".")[0]
        assert left.num_bytes + sum(s.num_bytes for s in groups[int(first)].values()) > limit


@given(count=st.integers(1, 5))
def test_the_index_lists_every_tensor_with_its_file(count: int) -> None:
    shards = plan_shards([group(number, [10]) for number in range(count)], max_bytes=10)
    index = index_of(shards)
    assert index["metadata"]["total_size"] == 10 * count
    assert set(index["weight_map"]) == {f"{number}.0" for number in range(count)}
    names = [SINGLE_NAME]
    if count > 1:
        names = [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    assert list(index["weight_map"].values()) == names
