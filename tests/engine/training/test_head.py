"""The head scores and pulls back the same, however its matrix is held."""

import pytest
import torch
from torch import Tensor

from multiflora.engine.training import head
from multiflora.engine.training.head import TrainingHead
from multiflora.kernels import cpu_ops, nf4
from multiflora.kernels.ops import DenseWeight, Weight
from multiflora.kernels.quantize import quantize

VOCABULARY, HIDDEN = 320, 64


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def held(form: str) -> tuple[Weight, Tensor]:
    """A weight, and the float32 matrix that it stands for."""
    matrix = random(VOCABULARY, HIDDEN, seed=1)
    if form == "wide":
        return DenseWeight(matrix), matrix
    if form == "narrow":
        return DenseWeight(matrix.bfloat16()), matrix.bfloat16().float()
    canonical = quantize(matrix)
    return cpu_ops.pack_nf4(canonical, torch.float32), nf4.dequantize(canonical)


@pytest.mark.parametrize("part_rows", [128, 16_384])
@pytest.mark.parametrize("form", ["wide", "narrow", "nf4"])
def test_scores_and_slopes_are_those_of_the_matrix(
    form: str, part_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "PART_ROWS", part_rows)
    weight, matrix = held(form)
    normed, targets = random(7, HIDDEN), torch.arange(7) * 40
    found = TrainingHead(cpu_ops, weight).score(normed, targets, with_slopes=True)
    wanted = normed.clone().requires_grad_()
    log_probs = (wanted @ matrix.T).log_softmax(-1)[torch.arange(7), targets]
    (slopes,) = torch.autograd.grad(log_probs.sum(), wanted)
    torch.testing.assert_close(found.log_probs, log_probs.detach(), atol=1e-5, rtol=1e-5)
    assert found.slopes is not None
    torch.testing.assert_close(found.slopes, slopes, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["wide", "narrow", "nf4"])
def test_divergences_and_their_slopes_are_those_of_the_matrix(form: str) -> None:
    weight, matrix = held(form)
    normed, anchor = random(5, HIDDEN), random(5, HIDDEN, seed=2)
    found = TrainingHead(cpu_ops, weight).diverge(normed, anchor)
    wanted = normed.clone().requires_grad_()
    own, other = ((x @ matrix.T).log_softmax(-1) for x in (wanted, anchor))
    values = (other.exp() * (other - own)).sum(-1)
    (slopes,) = torch.autograd.grad(values.sum(), wanted)
    torch.testing.assert_close(found.values, values.detach(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.slopes, slopes, atol=1e-5, rtol=1e-4)
