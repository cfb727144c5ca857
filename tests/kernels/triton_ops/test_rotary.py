"""Head norm, rotation and cache writes against the plain backend."""

from typing import Any

import pytest
import torch
from torch import Tensor

from multiflora.kernels import torch_ops
from multiflora.kernels.ops import HeadNorm, HeadShape, RopeTable
from multiflora.kernels.triton_ops.rotary import rotate_and_cache

BLOCK = 8


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rope_table(size: int, device: torch.device) -> RopeTable:
    angles = torch.outer(torch.arange(50.0), 10000 ** -(torch.arange(0, size, 2) / size))
    return RopeTable(angles.cos().to(device), angles.sin().to(device))


def caches(heads: HeadShape, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    shape = (4, BLOCK, heads.num_kv_heads, heads.size)
    return (
        torch.full(shape, 7.0, dtype=dtype, device=device),
        torch.full(shape, 7.0, dtype=dtype, device=device),
    )


@pytest.mark.parametrize("with_norm", [False, True], ids=["plain", "head-norm"])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "size"),
    [(4, 2, 32), (7, 1, 64), (2, 2, 80), (3, 1, 96), (4, 1, 128), (2, 1, 256)],
)
def test_heads_equal_the_plain_backend(
    num_heads: int,
    num_kv_heads: int,
    size: int,
    with_norm: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    heads, table = HeadShape(num_heads, num_kv_heads, size), rope_table(size, device)
    qkv = random(3, (num_heads + 2 * num_kv_heads) * size).to(device, dtype)
    norm = None
    if with_norm:
        weights = random(2, size, seed=1).to(device, dtype)
        norm = HeadNorm(weights[0], weights[1], 1e-6)
    positions = torch.tensor([7, 0, 49], dtype=torch.int32, device=device)
    rows = torch.tensor([11, 5, 30], device=device)
    found_cache, expected_cache = caches(heads, dtype, device), caches(heads, dtype, device)
    found = rotate_and_cache(qkv, heads, norm, table, positions, found_cache, rows)
    expected = torch_ops.rotate_and_cache(
        qkv, heads, norm, table, positions.long(), expected_cache, rows.long()
    )
    close: dict[str, Any] = {"atol": 4 * torch.finfo(dtype).eps, "rtol": 2 * torch.finfo(dtype).eps}
    torch.testing.assert_close(found, expected, **close)
    torch.testing.assert_close(found_cache[0], expected_cache[0], **close)
    assert torch.equal(found_cache[1], expected_cache[1])


def test_a_negative_row_is_not_stored_but_rotated(device: torch.device) -> None:
    heads, table = HeadShape(2, 1, 32), rope_table(32, device)
    qkv = random(2, 4 * 32).to(device)
    cache = caches(heads, torch.float32, device)
    positions = torch.tensor([3, 3], device=device)
    rows = torch.tensor([-1, 9], dtype=torch.int32, device=device)
    q = rotate_and_cache(qkv, heads, None, table, positions, cache, rows)
    alone = rotate_and_cache(qkv[:1], heads, None, table, positions, cache, rows[1:])
    assert torch.equal(q[:1], alone)
    for pages in cache:
        untouched = torch.ones(4 * BLOCK, dtype=torch.bool, device=device)
        untouched[9] = False
        assert bool((pages.flatten(0, 1)[untouched] == 7).all())


def test_rows_of_a_wider_tensor_are_read_in_place(device: torch.device) -> None:
    heads, table = HeadShape(2, 1, 32), rope_table(32, device)
    wide = random(3, 4 * 32 + 16).to(device)
    positions = torch.tensor([1, 2, 3], device=device)
    rows = torch.tensor([0, 1, 2], device=device)
    results = [
        rotate_and_cache(
            qkv, heads, None, table, positions, caches(heads, torch.float32, device), rows
        )
        for qkv in (wide[:, : 4 * 32], wide[:, : 4 * 32].contiguous())
    ]
    assert torch.equal(*results)
