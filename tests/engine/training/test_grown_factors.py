"""Fresh ranks beside frozen ones, their merge, and the mean of checkpoints."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from multiflora.engine.training.checkpoint import VALUES
from multiflora.engine.training.config import (
    BatchSettings,
    CheckpointSettings,
    EvaluationSettings,
    LoraSettings,
    OptimizerSettings,
    TrainingSettings,
)
from multiflora.engine.training.continual_config import ContinualSettings
from multiflora.engine.training.grown_factors import FrozenRanks, grown_lora
from multiflora.engine.training.quantum import StepTaken
from multiflora.engine.training.sweep import Sweep

LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
FAST = OptimizerSettings(learning_rate=5e-3)


def deltas(factors: Any) -> dict[str, torch.Tensor]:
    tensors = factors.tensors()
    return {
        module.module.path: module.module.scale
        * tensors[module.module.b_name]
        @ tensors[module.module.a_name]
        for planned in factors.layout.projections
        for module in planned.parts
    }


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("patterns", [{}, {"q_proj": 2}])
def test_grown_modules_keep_their_scale(
    use_rslora: bool, patterns: dict[str, int], make_network: Callable[..., Any]
) -> None:
    model = make_network().config
    lora = LoraSettings(rank=4, alpha=12, use_rslora=use_rslora, rank_pattern=patterns)
    settings = TrainingSettings(lora=lora, continual=ContinualSettings(mode="merge", merge_rank=3))
    grown = {module.path: module for module in grown_lora(settings, model).modules(model)}
    for module in lora.modules(model):
        assert grown[module.path].rank == module.rank + 3
        assert grown[module.path].scale == pytest.approx(module.scale)


def test_a_merging_run_moves_fresh_ranks_alone_and_ends_at_the_old_rank(
    make_run: Callable[..., Any],
    finish: Callable[..., Any],
    make_network: Callable[..., Any],
    make_factors: Callable[..., Any],
    make_examples: Callable[..., Any],
) -> None:
    start = make_factors(make_network(), **LORA)
    rows = make_examples([20, 15, 30, 11])
    runs = []
    for weight in (1.0, 0.5):
        run = make_run(
            *(rows,),
            folder=f"merge-{weight}",
            start=start.tensors(),
            optimizer=FAST,
            batch=BatchSettings(batch_size=2, num_epochs=4),
            continual=ContinualSettings(mode="merge", merge_rank=2, merge_weight=weight),
        )
        before = deltas(run.factors)
        for path, delta in deltas(start).items():
            torch.testing.assert_close(before[path], delta, rtol=1e-5, atol=1e-6)
        losses = [e.metrics["loss"] for e in finish(run) if isinstance(e, StepTaken)]
        assert losses[-1] < losses[0]
        tensors = run.factors.tensors()
        for name, tensor in start.tensors().items():
            kept = tensors[name][:4] if "lora_A" in name else tensors[name][:, :4]
            assert torch.equal(kept, tensor)
        runs.append(run)
    run, half = runs
    for path, old in deltas(start).items():
        grown, result, other = (
            deltas(each)[path] for each in (run.factors, run.result, half.result)
        )
        assert torch.linalg.matrix_rank(result, rtol=1e-5) <= 4
        # The nearest of its rank: as far away as the singular values that it lacks.
        lost = torch.linalg.svdvals(grown)[4:].norm()
        assert float((grown - result).norm()) == pytest.approx(float(lost), rel=1e-3, abs=1e-5)
        assert (other - old).norm() < (result - old).norm()


def test_the_penalty_is_that_of_o_lora_and_keeps_subspaces_apart(
    make_network: Callable[..., Any], make_factors: Callable[..., Any]
) -> None:
    network = make_network()
    start = make_factors(network, **LORA).tensors()
    factors = make_factors(network, seed=5, **{**LORA, "r": 7})
    frozen = FrozenRanks(factors, start)
    frozen.load(start)
    assert factors.gradient is not None
    factors.gradient.zero_()
    leaves = {name: t.requires_grad_() for name, t in factors.tensors().items() if "lora_A" in name}
    overlaps = [(a[4:] @ a[:4].detach().T).abs().sum() for a in leaves.values()]
    expected = 0.5 * torch.stack(overlaps).sum()
    expected.backward()
    assert frozen.guard(0.5) == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, gradient in factors.gradients().items():
        if "lora_A" in name:
            wanted = leaves[name].grad
            assert wanted is not None
            torch.testing.assert_close(gradient[4:], wanted[4:], rtol=1e-4, atol=1e-5)
            assert not gradient[:4].any()


def test_orthogonality_lowers_the_overlap(
    make_run: Callable[..., Any],
    finish: Callable[..., Any],
    make_network: Callable[..., Any],
    make_factors: Callable[..., Any],
    make_examples: Callable[..., Any],
) -> None:
    start = make_factors(make_network(), **LORA).tensors()
    overlaps = {}
    for weight in (0.0, 0.5):
        run = make_run(
            *(make_examples([20, 15, 30, 11]),),
            folder=f"apart-{weight}",
            start=start,
            optimizer=FAST,
            batch=BatchSettings(batch_size=2, num_epochs=10),
            continual=ContinualSettings(mode="merge", orthogonality=weight),
        )
        finish(run)
        overlaps[weight] = sum(
            float((a[4:] @ a[:4].T).abs().sum())
            for name, a in run.factors.tensors().items()
            if "lora_A" in name
        )
    assert overlaps[0.5] < 0.5 * overlaps[0.0]


def test_a_soup_is_the_mean_of_deltas_and_not_of_factors(
    make_run: Callable[..., Any], finish: Callable[..., Any], make_examples: Callable[..., Any]
) -> None:
    run = make_run(
        make_examples([20, 15, 30, 11]),
        optimizer=FAST,
        batch=BatchSettings(batch_size=2, num_epochs=6),
        checkpoint=CheckpointSettings(every_steps=4, keep=3),
        evaluation=EvaluationSettings(load_best=False),
        continual=ContinualSettings(soup=3),
    )
    finish(run)
    result = deltas(run.result)
    steps = [step for step, _ in run.checkpoints()]
    assert steps == [4, 8, 12]
    each = []
    for step in steps:
        run.factors.values.data.copy_(run._checkpoints.read(step).tensors[VALUES])
        each.append(deltas(run.factors))
    for path, found in result.items():
        mean = torch.stack([one[path] for one in each]).mean(0)
        lost = torch.linalg.svdvals(mean)[4:].norm()
        assert float((mean - found).norm()) == pytest.approx(float(lost), rel=1e-2, abs=1e-5)


def test_a_grown_version_answers_as_its_two_parts_together(
    make_network: Callable[..., Any],
    make_factors: Callable[..., Any],
    make_examples: Callable[..., Any],
    pack: Callable[..., Any],
    drain: Callable[..., Any],
) -> None:
    network, batch = make_network(), pack(make_examples([14, 9]))
    start = make_factors(network, **LORA)
    grown = make_factors(network, **{**LORA, "r": 6, "lora_alpha": 12})
    tensors = {n: t * (0 if "lora_B" in n else 1) for n, t in grown.tensors().items()}
    grown.load(tensors)
    FrozenRanks(grown, start.tensors()).load(start.tensors())
    found, expected = (
        drain(Sweep(network, batch, each).score()).log_probs for each in (grown, start)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
