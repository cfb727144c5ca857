"""Norms, rotary embedding, gated activation and cache writes against their definitions."""

from types import ModuleType

import pytest
import torch

from multiflora.kernels import cpu_ops, torch_ops


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


def test_rotation_keeps_norms_and_turns_by_relative_position(ops: ModuleType) -> None:
    angles = torch.outer(torch.arange(50.0), 10000 ** -(torch.arange(0, 32, 2) / 32))
    q, k = random(1, 2, 32).expand(50, -1, -1), random(1, 2, 32, seed=1).expand(50, -1, -1)
    cos, sin = angles.cos(), angles.sin()
    rotated_q, rotated_k = ops.rotate(q, cos, sin), ops.rotate(k, cos, sin)
    torch.testing.assert_close(rotated_q.norm(dim=-1), q.norm(dim=-1))
    products = torch.einsum("ihd,jhd->ijh", rotated_q, rotated_k)
    torch.testing.assert_close(products[10, 3], products[47, 40], atol=1e-4, rtol=1e-4)


def test_written_keys_land_in_their_rows_and_nowhere_else() -> None:
    k_cache, v_cache = torch.zeros(3, 4, 2, 8), torch.zeros(3, 4, 2, 8)
    k, v = random(2, 2, 8), random(2, 2, 8, seed=1)
    torch_ops.write_kv(k, v, k_cache, v_cache, torch.tensor([11, 5]))
    assert torch.equal(k_cache[2, 3], k[0])
    assert torch.equal(v_cache[1, 1], v[1])
    assert int((k_cache != 0).any(-1).any(-1).sum()) == 2
