"""Adjustments change their own rows only, as their formula says."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from multiflora.kernels import cpu_ops, torch_ops
from multiflora.kernels.adjustment import (
    Adjusted,
    Adjustment,
    adjust_embedding,
    adjust_outputs,
    scale_inputs,
)
from multiflora.kernels.ops import DenseWeight, LoraFactors, LoraPart, Segment

T, K, N, V = 9, 64, 48, 20
NAN = float("nan")
backends = pytest.mark.parametrize("ops", [torch_ops, cpu_ops], ids=lambda module: module.NAME)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def project(ops, x: Tensor, weight: Tensor, adjusted: Sequence[Adjusted]) -> Tensor:
    adjusted = list(adjusted)
    x = scale_inputs(x, adjusted)
    y = ops.linear(x, DenseWeight(weight), None, None)
    adjust_outputs(y, x, adjusted, ops)
    return y


@backends
def test_scales_and_shifts_follow_the_formula_on_their_rows(ops) -> None:
    x, weight = random(T, K), random(N, K, seed=1)
    inputs, outputs, shift = random(K, seed=2), random(N, seed=3), random(N, seed=4)
    y = project(ops, x, weight, [(Segment(2, 5, 0), Adjustment(inputs, outputs, shift))])
    plain = ops.linear(x, DenseWeight(weight), None, None)
    expected = (x[2:5] * inputs) @ weight.T * outputs + shift
    torch.testing.assert_close(y[2:5], expected, atol=1e-4, rtol=1e-5)
    assert torch.equal(y[:2], plain[:2])
    assert torch.equal(y[5:], plain[5:])


@backends
def test_shifts_of_a_blend_add_by_weight(ops) -> None:
    x, weight = random(T, K), random(N, K, seed=1)
    shifts = [random(N, seed=seed) for seed in (2, 3)]
    y = project(
        ops,
        x,
        weight,
        [
            (Segment(0, 4, slot, share), Adjustment(output_shift=shift))
            for slot, (share, shift) in enumerate(zip((0.75, -0.5), shifts, strict=True))
        ],
    )
    expected = x[:4] @ weight.T + 0.75 * shifts[0] - 0.5 * shifts[1]
    torch.testing.assert_close(y[:4], expected, atol=1e-4, rtol=1e-5)


@backends
def test_a_weight_of_its_own_stands_in_for_the_bases(ops) -> None:
    x, weight, other = random(T, K), random(N, K, seed=1), random(N, K, seed=2)
    y = project(ops, x, weight, [(Segment(3, 9, 0), Adjustment(weight=other))])
    torch.testing.assert_close(y[3:], x[3:] @ other.T, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(y[:3], x[:3] @ weight.T, atol=1e-4, rtol=1e-5)


@backends
def test_embeddings_are_looked_up_in_factors_and_tables(ops) -> None:
    ids = torch.tensor([3, 19, 0, 3, 7, 7, 1, 2, 3])
    table, other = random(V, N), random(V, N, seed=1)
    lookup = LoraFactors(random(3, V, seed=2), (LoraPart(random(3, N, seed=3), 0, 0, 0.5),))
    hidden = ops.embedding(ids, table)
    adjust_embedding(
        hidden,
        ids,
        [
            (Segment(0, 2, 0, 0.25), Adjustment(lookup=lookup)),
            (Segment(4, 6, 1), Adjustment(weight=other)),
        ],
        ops,
    )
    expected = table[ids].clone()
    expected[:2] += 0.25 * 0.5 * lookup.a[:, ids[:2]].T @ lookup.parts[0].b
    expected[4:6] = other[ids[4:6]]
    torch.testing.assert_close(hidden, expected)


@backends
@pytest.mark.parametrize(
    "poison",
    [
        Adjustment(input_scale=torch.full((K,), NAN)),
        Adjustment(output_scale=torch.full((N,), NAN)),
        Adjustment(output_shift=torch.full((N,), NAN)),
        Adjustment(weight=torch.full((N, K), NAN)),
    ],
    ids=["input", "scale", "shift", "weight"],
)
def test_nan_in_one_version_stays_on_its_rows(ops, poison: Adjustment) -> None:
    x, weight = random(T, K), random(N, K, seed=1)
    clean = project(ops, x, weight, [])
    y = project(ops, x, weight, [(Segment(4, 5, 0), poison)])
    assert y[4].isnan().all()
    assert torch.equal(y[:4], clean[:4])
    assert torch.equal(y[5:], clean[5:])


def test_on_the_cpu_a_rows_bits_do_not_depend_on_how_many_rows_share_its_segment() -> None:
    x, weight = random(33, K), random(N, K, seed=1)
    own = Adjustment(random(K, seed=2), random(N, seed=3), random(N, seed=4))
    together = project(cpu_ops, x, weight, [(Segment(0, 33, 0), own)])
    for row in range(33):
        alone = project(cpu_ops, x[row : row + 1], weight, [(Segment(0, 1, 0), own)])
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("num_rows", [3, 4, 27, 28])
def test_rows_that_are_adjusted_in_blocks_are_all_adjusted_once(num_rows: int) -> None:
    rows, scale, shift = random(num_rows, 9_728), random(9_728, seed=1), random(9_728, seed=2)
    adjustment = Adjustment(input_scale=scale, output_scale=scale, output_shift=shift)
    adjusted = [(Segment(0, num_rows, 0), adjustment)]
    assert torch.equal(scale_inputs(rows, adjusted), rows * scale)
    y = rows.clone()
    adjust_outputs(y, rows, adjusted, torch_ops)
    assert torch.equal(y, rows * scale + shift)


def test_half_precision_rounds_once_at_the_end() -> None:
    x, weight = random(T, K).bfloat16(), random(N, K, seed=1).bfloat16()
    scale, shift = random(N, seed=2), random(N, seed=3)
    y = project(torch_ops, x, weight, [(Segment(0, T, 0), Adjustment(None, scale, shift))])
    plain = torch_ops.linear(x, DenseWeight(weight), None, None)
    assert torch.equal(y, (plain.float() * scale + shift).bfloat16())
