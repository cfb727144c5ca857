"""AdamW, its clipping and its schedules against torch and transformers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from multiflora.engine.training.config import OptimizerSettings, ScheduleSettings
from multiflora.engine.training.error import TrainingDiverged
from multiflora.engine.training.optimizer import Optimizer
from multiflora.engine.training.schedule import rate_factor


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize(("ratio", "decay"), [(1.0, 0.0), (1.0, 0.1), (16.0, 0.1)])
def test_steps_equal_those_of_torch(
    ratio: float,
    decay: float,
    use_dora: bool,
    make_network: Callable[..., Any],
    make_factors: Callable[..., Any],
    drain: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A chunk ends within a matrix.
    monkeypatch.setattr("multiflora.engine.training.optimizer.CHUNK_ELEMENTS", 5 * 256)
    factors = make_factors(make_network(), r=3, target_modules="all-linear", use_dora=use_dora)
    settings = OptimizerSettings(weight_decay=decay, lora_plus_ratio=ratio, max_grad_norm=1.0)
    leaves = {name: tensor.requires_grad_() for name, tensor in factors.tensors().items()}
    groups = [
        {"params": [leaf for name, leaf in leaves.items() if is_a == ("lora_A" in name)], "lr": 0.0}
        for is_a in (True, False)
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
        assert drain(ours.step(number, rate)) == pytest.approx(float(norm), rel=1e-5)
        assert not factors.gradient.any()
    for name, tensor in factors.tensors().items():
        torch.testing.assert_close(tensor, leaves[name].detach(), rtol=1e-4, atol=1e-6)


def test_magnitudes_learn_and_decay_as_b_does_in_peft() -> None:
    from peft import LoraConfig, get_peft_model
    from peft.optimizers import create_loraplus_optimizer

    config = LoraConfig(target_modules=["0"], use_dora=True)
    model: Any = get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), config)  # type: ignore[arg-type]
    optimizer = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16, loraplus_weight_decay=0.1
    )
    group = {id(leaf): group for group in optimizer.param_groups for leaf in group["params"]}
    b, magnitude = (
        next(group[id(leaf)] for name, leaf in model.named_parameters() if part in name)
        for part in ("lora_B", "magnitude")
    )
    assert b is magnitude
    assert (b["lr"], b["weight_decay"]) == (16e-3, 0.1)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_8_bit_steps_are_those_of_bitsandbytes(
    decay: float,
    make_network: Callable[..., Any],
    make_factors: Callable[..., Any],
    drain: Callable[..., Any],
) -> None:
    from bitsandbytes.optim.adamw import AdamW8bit

    factors = make_factors(make_network(), r=3, target_modules="all-linear")
    start = factors.values.detach().clone()
    theirs = torch.nn.Parameter(start.clone())
    oracle = AdamW8bit([theirs], lr=1e-3, weight_decay=decay, min_8bit_size=1)
    settings = OptimizerSettings(kind="adamw_8bit", weight_decay=decay, max_grad_norm=1e9)
    ours = Optimizer(factors, settings)
    generator = torch.Generator().manual_seed(0)
    for number in range(1, 6):
        # Near zero the two round differently.
        gradient = 1 + torch.rand(theirs.shape, generator=generator)
        factors.gradient.copy_(gradient)
        theirs.grad = gradient.clone()
        oracle.step()
        drain(ours.step(number, 1e-3))
    state = oracle.state[theirs]
    for name, place in (("first_moment", "1"), ("second_moment", "2")):
        scales = ours.tensors()[f"{name}_scale"]
        torch.testing.assert_close(scales, state[f"absmax{place}"], rtol=0.02, atol=0)
    torch.testing.assert_close(factors.values.detach(), theirs.detach(), rtol=0, atol=1e-4)
    assert float((factors.values - start).abs().min()) > 4e-3


def test_a_long_step_is_several_quanta(
    make_network: Callable[..., Any],
    make_factors: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = 7 * 256
    monkeypatch.setattr("multiflora.engine.training.optimizer.CHUNK_ELEMENTS", size)
    monkeypatch.setattr("multiflora.engine.training.optimizer.QUANTUM_ELEMENTS", 2 * size)
    factors = make_factors(make_network(), r=3, target_modules="all-linear")
    factors.gradient.fill_(1.0)
    before = factors.values.detach().clone()
    quanta = Optimizer(factors, OptimizerSettings()).step(1, 1e-3)
    ends = []
    for report in quanta:
        assert report.kind == "optimizer"
        moved = factors.values != before
        ends.append(int(moved.sum()))
        assert moved[: ends[-1]].all()
    assert ends == list(range(2 * size, before.numel(), 2 * size))
    assert (factors.values != before).all()


def test_a_gradient_that_is_not_finite_moves_nothing(
    make_network: Callable[..., Any],
    make_factors: Callable[..., Any],
    drain: Callable[..., Any],
) -> None:
    factors = make_factors(make_network(), r=3, target_modules="all-linear")
    optimizer = Optimizer(factors, OptimizerSettings())
    factors.gradient[3] = float("inf")
    before = factors.values.clone()
    with pytest.raises(TrainingDiverged, match="norm at step 7 is inf"):
        drain(optimizer.step(7, 1e-3))
    assert torch.equal(factors.values, before)
    assert not any(tensor.any() for tensor in optimizer.tensors().values())


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
