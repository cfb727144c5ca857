"""Norms, rotary embedding, gated activation and cache writes against their definitions."""

from types import ModuleType

import pytest
import torch

from multiflora.kernels import cpu_ops, torch_ops
from multiflora.kernels.ops import HeadNorm, HeadShape, RopeTable


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 64), (3, 4, 32), (300, 192)])
def test_rms_norm_equals_the_definition(ops: ModuleType, shape: tuple[int, ...]) -> None:
    x, weight = random(*shape), random(shape[-1], seed=1)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    torch.testing.assert_close(ops.rms_norm(x, weight, 1e-5).double(), expected, atol=1e-5, rtol=0)


def test_add_rms_norm_returns_the_sum_and_its_norm(ops: ModuleType) -> None:
    x, residual, weight = random(5, 64), random(5, 64, seed=1), random(64, seed=2)
    normed, total = ops.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, x + residual)
    assert torch.equal(normed, ops.rms_norm(total, weight, 1e-5))


@pytest.mark.parametrize("num_rows", [1, 7, 700])
def test_silu_mul_equals_the_definition(ops: ModuleType, num_rows: int) -> None:
    gate_up = random(num_rows, 2 * 192)
    gate, up = gate_up.double().chunk(2, -1)
    found = ops.silu_mul(gate_up).double()
    torch.testing.assert_close(found, gate / (1 + (-gate).exp()) * up, atol=1e-5, rtol=0)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_cpu_row_ops_do_not_depend_on_the_number_of_rows(threads: int) -> None:
    x, gate_up, weight = random(701, 192), random(701, 2 * 192, seed=1), random(192, seed=2)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        normed, activated = cpu_ops.rms_norm(x, weight, 1e-6), cpu_ops.silu_mul(gate_up)
        for start, stop in ((0, 1), (3, 8), (100, 433), (0, 700)):
            rows = slice(start, stop)
            assert torch.equal(cpu_ops.rms_norm(x[rows], weight, 1e-6), normed[rows])
            assert torch.equal(cpu_ops.silu_mul(gate_up[rows]), activated[rows])
    finally:
        torch.set_num_threads(before)


def rope_table(num_positions: int, size: int) -> RopeTable:
    angles = torch.outer(
        torch.arange(float(num_positions)), 10000 ** -(torch.arange(0, size, 2) / size)
    )
    return RopeTable(angles.cos(), angles.sin())


def expected_rotation(x: torch.Tensor, angles: RopeTable, positions: torch.Tensor) -> torch.Tensor:
    """Each pair (i, i + D / 2) of x [T, heads, D] turned as a complex number, in float64."""
    first, second = x.double().chunk(2, -1)
    turn = torch.complex(angles.cos.double(), angles.sin.double())[positions][:, None]
    turned = torch.complex(first, second) * turn
    return torch.cat((turned.real, turned.imag), -1)


@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 2), (3, 1)])
def test_heads_are_rotated_by_position_and_cached_in_their_rows_and_nowhere_else(
    ops: ModuleType, num_heads: int, num_kv_heads: int, with_norm: bool
) -> None:
    heads, table = HeadShape(num_heads, num_kv_heads, 32), rope_table(50, 32)
    qkv = random(3, (num_heads + 2 * num_kv_heads) * 32)
    q, k, v = qkv.view(3, -1, 32).split((num_heads, num_kv_heads, num_kv_heads), 1)
    norm = HeadNorm(random(32, seed=1), random(32, seed=2), 1e-6) if with_norm else None
    if norm:
        q, k = (torch_ops.rms_norm(x, w, 1e-6) for x, w in ((q, norm.q), (k, norm.k)))
    positions, rows = torch.tensor([7, 0, 49]), torch.tensor([11, 5, 2])
    cache = torch.zeros(3, 4, num_kv_heads, 32), torch.zeros(3, 4, num_kv_heads, 32)
    found = ops.rotate_and_cache(qkv, heads, norm, table, positions, cache, rows)
    close = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(found.double(), expected_rotation(q, table, positions), **close)
    keys = cache[0].flatten(0, 1)[rows].double()
    torch.testing.assert_close(keys, expected_rotation(k, table, positions), **close)
    assert torch.equal(cache[1].flatten(0, 1)[rows], v)
    for pages in cache:
        assert int((pages != 0).any(-1).any(-1).sum()) == 3


def test_products_of_rotated_heads_depend_on_relative_position_only(ops: ModuleType) -> None:
    qkv = random(1, 3 * 32).expand(50, -1).contiguous()
    cache = torch.zeros(1, 64, 1, 32), torch.zeros(1, 64, 1, 32)
    rows = torch.arange(50)
    q = ops.rotate_and_cache(qkv, HeadShape(1, 1, 32), None, rope_table(50, 32), rows, cache, rows)
    products = q[:, 0] @ cache[0][0, :50, 0].T
    torch.testing.assert_close(products[10, 3], products[47, 40], atol=1e-4, rtol=1e-4)
