"""AdamW, its clipping and its schedules against torch and transformers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from multiflora.engine.training.config import OptimizerSettings, ScheduleSettings
from multiflora.engine.training.error import TrainingDiverged
from multiflora.engine.training.optimizer import Optimizer
from multiflora.engine.training.schedule import rate_factor


@pytest.mark.parametrize("ratio", [1.0, 16.0])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_equal_those_of_torch(
    ratio: float, decay: float, make_network: Callable[..., Any], make_factors: Callable[..., Any]
) -> None:
    factors = make_factors(make_network(), r=3, target_modules="all-linear")
    settings = OptimizerSettings(weight_decay=decay, lora_plus_ratio=ratio, max_grad_norm=1.0)
    leaves = {name: tensor.requires_grad_() for name, tensor in factors.tensors().items()}
    groups = [
        {"params": [leaf for name, leaf in leaves.items() if letter in name], "lr": 0.0}
        for letter in ("lora_A", "lora_B")
    ]
    theirs = torch.optim.AdamW(groups, weight_decay=decay)
    ours = Optimizer(factors, settings)
    generator = torch.Generator().manual_seed(0)
    for number in range(1, 9):
        for view in factors.leaves():
            view.grad.copy_(torch.randn(view.shape, generator=generator) * 0.01 * number)
        for name, tensor in factors.gradients().items():
            leaves[name].grad = tensor
        norm = torch.nn.utils.clip_grad_norm_(list(leaves.values()), 1.0)
        rate = 1e-3 * number
        theirs.param_groups[0]["lr"], theirs.param_groups[1]["lr"] = rate, rate * ratio
        theirs.step()
        assert ours.step(number, rate) == pytest.approx(float(norm), rel=1e-5)
        assert not factors.gradient.any()
    for name, tensor in factors.tensors().items():
        torch.testing.assert_close(tensor, leaves[name].detach(), rtol=1e-4, atol=1e-6)


def test_a_gradient_that_is_not_finite_moves_nothing(
    make_network: Callable[..., Any], make_factors: Callable[..., Any]
) -> None:
    factors = make_factors(make_network(), r=3, target_modules="all-linear")
    optimizer = Optimizer(factors, OptimizerSettings())
    factors.gradient[3] = float("inf")
    before = factors.values.clone()
    with pytest.raises(TrainingDiverged, match="norm at step 7 is inf"):
        optimizer.step(7, 1e-3)
    assert torch.equal(factors.values, before)
    assert not optimizer.first_moment.any()


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0, 7])
def test_rates_equal_those_of_transformers(kind: str, warmup: int) -> None:
    import transformers

    leaf = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([leaf], lr=1.0)
    scheduler = transformers.get_scheduler(
        kind if kind != "constant" else "constant_with_warmup", optimizer, warmup, 40
    )
    settings = ScheduleSettings(kind=kind, warmup_steps=warmup)  # type: ignore[arg-type]
    for step in range(40):
        assert rate_factor(settings, step, 40) == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()


def test_warmup_is_a_ratio_rounded_up() -> None:
    settings = ScheduleSettings(kind="constant", warmup_ratio=0.1)
    assert [rate_factor(settings, step, 11) for step in range(4)] == [0.0, 0.5, 1.0, 1.0]
