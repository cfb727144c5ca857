"""Preference losses against TRL's own code; the shared prompt against two separate sequences."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from multiflora.engine.training.config import (
    PREFERENCE_LOSSES,
    BatchSettings,
    LoraSettings,
    OptimizerSettings,
    PreferenceSettings,
    ScheduleSettings,
)
from multiflora.engine.training.example import Example, Preference
from multiflora.engine.training.head import TokenScores
from multiflora.engine.training.preference import PreferenceTask
from multiflora.engine.training.quantum import StepTaken
from multiflora.engine.training.sweep import Sweep

SHAPES = [(9, 5, 8), (4, 12, 3), (2, 2, 7)]
CPU = torch.device("cpu")


def trl_loss(
    preferences: list[Preference],
    settings: PreferenceSettings,
    log_probs: list[torch.Tensor],
    reference: torch.Tensor,
) -> tuple[torch.Tensor, dict[str, float]]:
    """What ``DPOTrainer`` makes of completions' log-probabilities: [chosen, rejected] by pair."""
    from trl.trainer.dpo_trainer import DPOTrainer

    whole = [(p.prompt, p.chosen) for p in preferences] + [
        (p.prompt, p.rejected) for p in preferences
    ]
    width = max(len(prompt) + len(completion) for prompt, completion in whole)
    rows, masks = (
        torch.zeros(len(whole), width - 1),
        torch.zeros(len(whole), width, dtype=torch.int64),
    )
    ordered = log_probs[0::2] + log_probs[1::2]
    for row, ((prompt, completion), values) in enumerate(zip(whole, ordered, strict=True)):
        places = slice(len(prompt), len(prompt) + len(completion))
        masks[row, places] = 1
        rows[row, places.start - 1 : places.stop - 1] = values
    zeros = torch.zeros_like(rows)
    outputs = SimpleNamespace(
        log_probs=rows, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
    )
    metrics: dict[str, list[float]] = {}
    trainer: Any = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(device=CPU, gather_for_metrics=lambda x: x, gather=lambda x: x),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[settings.loss, "sft"],
        loss_weights=[1.0, settings.sft_weight],
        beta=settings.beta,
        label_smoothing=settings.label_smoothing,
        use_weighting=False,
        _total_train_tokens=0,
        _metrics={"eval": _Metrics(metrics)},
    )
    inputs = {
        "input_ids": torch.ones_like(masks),
        "completion_mask": masks,
        "ref_chosen_logps": reference[:, 0],
        "ref_rejected_logps": reference[:, 1],
    }
    loss = DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)
    return loss, {name: values[0] for name, values in metrics.items()}


class _Metrics(dict[str, list[float]]):
    """A defaultdict that fills the given dictionary."""

    def __init__(self, target: dict[str, list[float]]) -> None:
        self._target = target

    def __getitem__(self, name: str) -> list[float]:
        return self._target.setdefault(name, [])

    def __setitem__(self, name: str, values: list[float]) -> None:
        self._target[name] = values


@pytest.mark.parametrize("sft_weight", [0.0, 0.7])
@pytest.mark.parametrize("loss", PREFERENCE_LOSSES)
def test_losses_and_their_slopes_equal_those_of_trl(
    loss: Any, sft_weight: float, make_preferences: Callable[..., Any]
) -> None:
    smoothing = 0.2 if loss == "robust" else 0.0
    settings = PreferenceSettings(
        loss=loss, beta=0.3, label_smoothing=smoothing, sft_weight=sft_weight
    )
    preferences = make_preferences(SHAPES)
    generator = torch.Generator().manual_seed(1)
    reference = -20 * torch.rand(len(SHAPES), 2, generator=generator)
    task = PreferenceTask(preferences, settings)
    task.reference = reference
    batch = task.pack([0, 1, 2], CPU)
    leaf = (-4 * torch.rand(batch.num_predictions, generator=generator)).requires_grad_()
    ours = task.step_loss([0, 1, 2])
    lengths = [length for _, *both in SHAPES for length in both]
    theirs, metrics = trl_loss(preferences, settings, list(leaf.split(lengths)), reference)
    value = ours.of(batch)(leaf)
    assert float(value.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    slopes = [torch.autograd.grad(whole, leaf)[0] for whole in (value, theirs)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-7)
    scores = TokenScores(leaf.detach(), torch.zeros_like(leaf), leaf > 0, None)
    means = ours.tally(batch, scores).means()
    for name in ("chosen", "rejected", "margins", "accuracies"):
        assert means[f"rewards/{name}"] == pytest.approx(metrics[f"rewards/{name}"], rel=1e-5)
    for name in ("logps/chosen", "logps/rejected"):
        assert means[name] == pytest.approx(metrics[name], rel=1e-5)


def test_label_smoothing_on_sigmoid_is_conservative_dpo(
    make_preferences: Callable[..., Any],
) -> None:
    """The share of flipped pairs gets the loss of the flipped pair."""
    preferences = make_preferences(SHAPES[:1])
    flipped = [Preference(p.prompt, p.rejected, p.chosen, p.line) for p in preferences]
    values = {}
    cases = (("mixed", preferences, 0.3), ("as", preferences, 0.0), ("flipped", flipped, 0.0))
    for name, rows, smoothing in cases:
        task = PreferenceTask(rows, PreferenceSettings(label_smoothing=smoothing))
        task.reference = torch.zeros(1, 2)
        log_probs = torch.arange(13.0) if name != "flipped" else torch.arange(13.0).roll(-5)
        values[name] = float(task.step_loss([0]).of(task.pack([0], CPU))(log_probs))
    assert values["mixed"] == pytest.approx(0.7 * values["as"] + 0.3 * values["flipped"], rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_shared_prompt_scores_and_trains_as_two_sequences(
    family: str,
    make_network: Callable[..., Any],
    make_factors: Callable[..., Any],
    make_preferences: Callable[..., Any],
    pack: Callable[..., Any],
    drain: Callable[..., Any],
) -> None:
    network = make_network(family)
    # Longer than Mistral's window, alone and together with the prompt.
    preferences = make_preferences([(30, 9, 40), (4, 33, 3), (1, 1, 2)])
    apart = [
        Example(p.prompt + tail, (0.0,) * len(p.prompt) + (1.0,) * len(tail), p.line)
        for p in preferences
        for tail in (p.chosen, p.rejected)
    ]
    shared = PreferenceTask(preferences, PreferenceSettings()).pack([0, 1, 2], CPU)
    assert shared.num_tokens < pack(apart).num_tokens
    found = []
    for batch in (shared, pack(apart)):
        factors = make_factors(network, r=4, lora_alpha=8, target_modules="all-linear")
        slope = torch.linspace(-1, 1, batch.num_predictions)
        scores = drain(
            Sweep(network, batch, factors).train(lambda values, slope=slope: (slope * values).sum())
        )
        found.append((scores.log_probs, factors.gradient))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-5)
    error = (found[0][1] - found[1][1]).norm() / found[1][1].norm()
    assert error < 1e-5


def test_the_reference_is_scored_once_and_kept(
    make_run: Callable[..., Any],
    finish: Callable[..., Any],
    make_preferences: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = make_preferences(SHAPES)
    settings = {"method": PreferenceSettings(), "batch": BatchSettings(num_epochs=2)}
    run = make_run(rows, **settings)
    events = [event for event in finish(run) if isinstance(event, StepTaken)]
    first = events[0].metrics
    # B is zero at first: the policy is the reference, and every reward is nothing.
    assert first["loss"] == pytest.approx(torch.tensor(2.0).log().item(), rel=1e-5)
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    assert first["logps/chosen"] == pytest.approx(float(run._task.reference[:, 0].mean()), rel=1e-5)
    kept = run._task.reference
    again = make_run(rows, **settings)
    monkeypatch.setattr("multiflora.engine.training.reference.Sweep", None)
    finish(again)
    assert torch.equal(again._task.reference, kept)


def test_preferences_are_learned_against_another_version(
    make_run: Callable[..., Any],
    finish: Callable[..., Any],
    make_network: Callable[..., Any],
    make_factors: Callable[..., Any],
    make_preferences: Callable[..., Any],
) -> None:
    """Going on from an adapter, with that adapter as the reference: rewards start at nothing."""
    lora = LoraSettings(rank=4, alpha=8)
    reference = make_factors(make_network(), r=4, lora_alpha=8, target_modules="all-linear")
    settings = {
        "method": PreferenceSettings(),
        "lora": lora,
        "batch": BatchSettings(num_epochs=15),
        "optimizer": OptimizerSettings(learning_rate=3e-3),
        "schedule": ScheduleSettings(kind="constant", warmup_ratio=0),
    }
    rows = make_preferences(SHAPES)
    run = make_run(rows, start=reference.tensors(), reference=reference, **settings)
    metrics = [event.metrics for event in finish(run) if isinstance(event, StepTaken)]
    assert metrics[0]["rewards/chosen"] == pytest.approx(0.0, abs=1e-4)
    assert metrics[-1]["rewards/accuracies"] == 1.0
    assert metrics[-1]["loss"] < 0.2
    against_base = make_run(rows, folder="base", start=reference.tensors(), **settings)
    assert abs(finish(against_base)[0].metrics["rewards/chosen"]) > 1e-3
