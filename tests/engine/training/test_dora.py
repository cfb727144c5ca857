"""DoRA's matmul against the formula that PEFT evaluates, with everything that autograd sees."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from multiflora.engine.training.config import BatchSettings, LoraSettings, OptimizerSettings
from multiflora.engine.training.dora import dora_matmul
from multiflora.engine.training.frozen_weight import FUSED_ROWS, FrozenWeight
from multiflora.engine.training.projection_factors import ProjectionFactors
from multiflora.engine.training.quantum import StepTaken
from multiflora.kernels.choose import choose_ops
from multiflora.kernels.ops import LoraPart
from multiflora.kernels.quantize import quantize

INPUTS, SLICES, RANKS = 64, (48, 16, 32), (3, None, 5)


def expected(
    x: Tensor, matrix: Tensor, bias: Tensor, factors: ProjectionFactors, keep: Tensor | None
) -> Tensor:
    """Slice by slice, with the product of the factors written out."""
    moved, y = x if keep is None else x * keep, x @ matrix.T
    columns = [y]
    for part, magnitude in zip(factors.parts, factors.magnitudes, strict=True):
        own = slice(part.first_column, part.first_column + part.b.shape[1])
        a = factors.a[part.first_rank : part.first_rank + part.b.shape[0]]
        delta = part.scale * part.b.T @ a
        norm = (matrix[own] + delta).norm(dim=1).detach()
        ratio = magnitude / norm
        change = (ratio - 1) * (moved @ matrix[own].T) + ratio * (moved @ delta.T)
        left, right = part.first_column, y.shape[1] - own.stop
        columns.append(torch.nn.functional.pad(change, (left, right)))
    return torch.stack(columns).sum(0) + bias


@pytest.mark.parametrize("rows", [7, FUSED_ROWS + 1])
@pytest.mark.parametrize("has_dropout", [False, True])
def test_outputs_and_all_gradients_are_those_of_the_formula(rows: int, has_dropout: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    matrix, bias, x = draw(sum(SLICES), INPUTS), draw(sum(SLICES)), draw(rows, INPUTS)
    a, parts, magnitudes = draw(8, INPUTS), [], []
    first_rank = first_column = 0
    for width, rank in zip(SLICES, RANKS, strict=True):
        if rank:
            parts.append(LoraPart(draw(rank, width), first_rank, first_column, 0.5))
            magnitudes.append(5 + draw(width))
            first_rank += rank
        first_column += width
    factors = ProjectionFactors(a, tuple(parts), tuple(magnitudes))
    keep = (draw(rows, INPUTS) > -1).float() * 1.25 if has_dropout else None
    leaves = [x, *factors.leaves]
    for leaf in leaves:
        leaf.requires_grad_()
    ops = choose_ops("cpu", torch.device("cpu"), torch.float32)
    weight = FrozenWeight(ops, ops.pack_nf4(quantize(matrix), torch.float32), bias)
    matrix = weight.dense(torch.float32)
    slope = draw(rows, sum(SLICES))
    outputs = dora_matmul(x, weight, factors, keep), expected(x, matrix, bias, factors, keep)
    found = [(y.detach(), *torch.autograd.grad(y, leaves, slope)) for y in outputs]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-4)


def test_training_starts_at_the_base_and_moves_the_magnitudes(
    make_run: Callable[..., Any], make_examples: Callable[..., Any]
) -> None:
    first, found = {}, {}
    for use_dora in (False, True):
        run = make_run(
            make_examples([20, 30]),
            folder=str(use_dora),
            lora=LoraSettings(rank=4, alpha=8, use_dora=use_dora),
            optimizer=OptimizerSettings(learning_rate=1e-2, weight_decay=0.1),
            batch=BatchSettings(max_steps=3),
        )
        before = run.factors.tensors()
        events = []
        while not run.has_ended:
            events.append(run.run_quantum().event)
        found[use_dora] = [e.metrics["loss"] for e in events if isinstance(e, StepTaken)]
        first = {name: tensor for name, tensor in before.items() if "magnitude" in name}
        after = run.factors.tensors()
    assert found[True][0] == pytest.approx(found[False][0], rel=1e-5)
    assert found[True][2] < found[True][0]
    assert len(first) == 3 * 7
    for name, tensor in first.items():
        assert 0 < float((after[name] - tensor).abs().max()) < 0.1
