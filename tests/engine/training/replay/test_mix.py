"""What is repeated keeps its share, is measured apart, and is held to its anchor."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from multiflora.engine.training.beside import Beside
from multiflora.engine.training.checkpoint import RunState
from multiflora.engine.training.config import (
    BatchSettings,
    OptimizerSettings,
    PreferenceSettings,
    SupervisedSettings,
)
from multiflora.engine.training.continual_config import ReplaySettings
from multiflora.engine.training.frozen_weight import FrozenWeight
from multiflora.engine.training.quantum import StepTaken
from multiflora.engine.training.replay.mix import ReplayMix
from multiflora.engine.training.sweep import Anchor, Sweep
from multiflora.engine.training.task import SupervisedTask

LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}


def mix_of(rows: list[Any], **settings: Any) -> ReplayMix:
    return ReplayMix(SupervisedTask(rows), ReplaySettings(**settings), seed=1)


@pytest.mark.parametrize("share", [0.1, 0.15, 0.5])
def test_replayed_rows_have_their_share_of_all(
    share: float, make_examples: Callable[..., Any]
) -> None:
    mix = mix_of(make_examples([9] * 20), share=share)
    state, seen = RunState(), []
    for _ in range(200):
        state, taken = mix.take(state, 4)
        assert taken.share == pytest.approx(len(taken.rows) / (4 + len(taken.rows)))
        seen += taken.rows
    assert len(seen) / (len(seen) + 800) == pytest.approx(share, abs=0.005)
    assert not set(seen) & set(mix.held_out)
    assert set(seen) | set(mix.held_out) == set(range(20))


@pytest.mark.parametrize(("num_held_out", "num_measured"), [(0, 64), (5, 5), (64, 20)])
def test_rows_are_held_out_or_all_are_learnt(
    num_held_out: int, num_measured: int, make_examples: Callable[..., Any]
) -> None:
    mix = mix_of(make_examples([9] * 80), share=0.5, num_held_out=num_held_out)
    _, taken = mix.take(RunState(), 80)
    assert len(mix.held_out) == num_measured
    learnt = set(range(80)) if num_held_out == 0 else set(range(80)) - set(mix.held_out)
    assert set(taken.rows) == learnt


def test_the_share_grows_with_the_perplexity_and_falls_back(
    make_examples: Callable[..., Any],
) -> None:
    mix = mix_of(make_examples([9] * 8), max_share=0.4)
    risen = [mix._adapted(0.15, 0.02)]
    risen += [mix._adapted(risen[-1], 0.02) for _ in range(1)]
    assert risen == pytest.approx([0.225, 0.3375])
    assert mix._adapted(risen[-1], 0.5) == 0.4
    assert mix._adapted(0.3, 0.005) == 0.3
    assert mix._adapted(0.3, -0.1) == pytest.approx(0.2)
    assert mix._adapted(0.16, -0.1) == 0.15
    fixed = mix_of(make_examples([9] * 8), adaptive=False)
    assert fixed._adapted(0.15, 0.5) == 0.15


def kl_by_autograd(network: Any, batch: Any, factors: Any, anchor: Any, weights: Any) -> Any:
    """The divergence with all logits at once, and its gradient."""
    drained: list[Any] = []
    for each in (factors, anchor):
        x = network.embed(batch)
        for layer in network.layers:
            x = layer.forward(x, network.context(batch), each, None)
        normed = network.norm(x.index_select(0, batch.sources))
        head = network.head
        matrix = FrozenWeight(head._ops, head._weight, None).dense(normed.dtype).to(normed.dtype)
        drained.append((normed @ matrix.T).log_softmax(-1))
    own, held = drained[0], drained[1].detach()
    values = (held.exp() * (held - own)).sum(-1)
    (weights * values).sum().backward()
    return values.detach()


@pytest.mark.parametrize("is_bare", [True, False])
def test_the_divergence_and_its_gradient_equal_autograd(
    is_bare: bool,
    make_network: Callable[..., Any],
    make_factors: Callable[..., Any],
    make_examples: Callable[..., Any],
    pack: Callable[..., Any],
    drain: Callable[..., Any],
) -> None:
    network, batch = make_network(), pack(make_examples([20, 11, 30]))
    factors, expected = (make_factors(network, **LORA) for _ in range(2))
    anchor = None if is_bare else make_factors(network, seed=9, **LORA)
    weights = torch.linspace(0.1, 2, batch.num_predictions)
    values = kl_by_autograd(network, batch, expected, anchor, weights)
    normed = drain(Sweep(network, batch, anchor).normed())
    sweep = Sweep(network, batch, factors)
    scores = drain(sweep.train(lambda p: 0 * p.sum(), anchor=Anchor(normed, weights)))
    torch.testing.assert_close(scores.divergences, values, rtol=1e-4, atol=1e-5)
    assert values.min() > 1e-4
    error = (factors.gradient - expected.gradient).norm() / expected.gradient.norm()
    assert error < 1e-4
    assert torch.equal(drain(Sweep(network, batch, factors).divergence(normed)), scores.divergences)


def test_replay_keeps_what_was_learnt(
    make_run: Callable[..., Any], finish: Callable[..., Any], make_examples: Callable[..., Any]
) -> None:
    old, rows = make_examples([12]) * 4, make_examples([12, 15, 9, 11], seed=11)
    first = make_run(
        *(old,),
        folder="first",
        optimizer=OptimizerSettings(learning_rate=1e-2),
        batch=BatchSettings(batch_size=4, num_epochs=60),
    )
    finish(first)
    risen = {}
    for name, settings in {
        "without": ReplaySettings(share=0.001, adaptive=False),
        "replayed": ReplaySettings(share=0.3),
        "anchored": ReplaySettings(share=0.3, loss_weight=0, kl_weight=1, kl_to="start"),
    }.items():
        run = make_run(
            *(rows,),
            folder=name,
            optimizer=OptimizerSettings(learning_rate=2e-2),
            batch=BatchSettings(batch_size=4, num_epochs=12),
            start=first.factors.tensors(),
            beside=Beside(replay=SupervisedTask(old)),
            replay=settings,
        )
        finish(run)
        assert run.scores is not None
        assert run.scores.replay is not None
        assert run.scores.baseline == "start"
        risen[name] = run.scores.replay.candidate.mean - run.scores.replay.baseline.mean
    assert risen["without"] > 0.1
    assert risen["replayed"] < 0.3 * risen["without"]
    assert risen["anchored"] < 0.3 * risen["without"]


@pytest.mark.parametrize("method", [SupervisedSettings(), PreferenceSettings()])
def test_a_resumed_run_repeats_the_same_rows(
    method: Any,
    make_run: Callable[..., Any],
    finish: Callable[..., Any],
    make_examples: Callable[..., Any],
    make_rows: Callable[..., Any],
) -> None:
    rows = make_rows(method)
    settings = {
        "method": method,
        "batch": BatchSettings(batch_size=2, num_epochs=3),
        "replay": ReplaySettings(share=0.3, kl_weight=0.5),
        "beside": Beside(replay=SupervisedTask(make_examples([8, 9, 10, 11], seed=2))),
    }
    whole = make_run(rows, folder="whole", **settings)
    expected = {e.step: e.metrics for e in finish(whole) if isinstance(e, StepTaken)}
    assert "replay/kl" in expected[2]
    broken = make_run(rows, folder="broken", **settings)
    while broken.state.step < 6:
        broken.run_quantum()
    broken.close()
    resumed = make_run(rows, folder="broken", **settings)
    assert resumed.state.step == 4
    found = {e.step: e.metrics for e in finish(resumed) if isinstance(e, StepTaken)}
    assert found == {step: metrics for step, metrics in expected.items() if step > 4}


def test_going_on_as_it_was_costs_no_replay(
    make_run: Callable[..., Any], finish: Callable[..., Any], make_examples: Callable[..., Any]
) -> None:
    """Without a replay file the settings for it mean nothing."""
    rows = make_examples([9, 12, 10])
    plain, other = (
        make_run(rows, folder=str(share), replay=ReplaySettings(share=share))
        for share in (0.15, 0.4)
    )
    finish(plain)
    finish(other)
    assert torch.equal(plain.factors.values, other.factors.values)
