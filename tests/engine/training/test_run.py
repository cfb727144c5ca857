"""A run's steps: losses, accumulation, suspension, divergence, evaluation and early stopping."""

import random
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from multiflora.engine.training.config import (
    OPTIMIZERS,
    BatchSettings,
    CheckpointSettings,
    EvaluationSettings,
    LoraSettings,
    OptimizerSettings,
    PreferenceSettings,
    ScheduleSettings,
    SupervisedSettings,
)
from multiflora.engine.training.data.config import DataConfig
from multiflora.engine.training.data.dataset import DatasetWriter, PreparedDataset
from multiflora.engine.training.data.report import Report
from multiflora.engine.training.error import (
    InvalidTrainingData,
    TrainingDiverged,
    TrainingError,
)
from multiflora.engine.training.example import Example, Preference
from multiflora.engine.training.quantum import (
    CheckpointWritten,
    Evaluated,
    RunEnded,
    StepTaken,
)
from multiflora.engine.training.run import make_task

LENGTHS = [30, 12, 45, 7, 22, 18, 9, 40, 26, 33]
FAST = OptimizerSettings(learning_rate=5e-3)
FLAT = ScheduleSettings(kind="constant", warmup_ratio=0)


def test_loss_falls_to_a_fraction_and_metrics_have_trl_names(
    make_run: Callable[..., Any], finish: Callable[..., Any], make_examples: Callable[..., Any]
) -> None:
    run = make_run(
        make_examples(LENGTHS[:4]),
        optimizer=FAST,
        schedule=FLAT,
        batch=BatchSettings(num_epochs=30),
    )
    events = [event for event in finish(run) if isinstance(event, StepTaken)]
    assert [event.step for event in events] == list(range(1, 31))
    assert events[-1].metrics["loss"] < 0.3 * events[0].metrics["loss"]
    assert events[-1].metrics["mean_token_accuracy"] > 0.9
    assert events[0].metrics.keys() == {
        *("loss", "mean_token_accuracy", "entropy", "grad_norm", "learning_rate"),
        *("num_tokens", "epoch"),
    }
    assert events[2].metrics["num_tokens"] == 3 * sum(LENGTHS[:4])
    assert events[2].metrics["epoch"] == 3.0


@pytest.mark.parametrize("use_dora", [False, True])
def test_micro_batches_do_not_change_the_result(
    use_dora: bool,
    make_run: Callable[..., Any],
    finish: Callable[..., Any],
    make_examples: Callable[..., Any],
) -> None:
    rows = make_examples([20, 9, 31, 5, 44, 13, 26, 17])
    lora = LoraSettings(rank=4, alpha=8, use_dora=use_dora)
    settings = {"lora": lora, "optimizer": FAST, "schedule": FLAT}
    found = []
    for name, budget in (("one", 4096), ("eight", 44)):
        batch = BatchSettings(batch_size=8, num_epochs=3, micro_batch_tokens=budget)
        run = make_run(rows, folder=name, batch=batch, **settings)
        events = finish(run)
        found.append(([e.metrics for e in events if isinstance(e, StepTaken)], run))
    (one, one_run), (eight, eight_run) = found
    for a, b in zip(one, eight, strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    torch.testing.assert_close(
        one_run.factors.values, eight_run.factors.values, rtol=1e-3, atol=1e-5
    )


def test_weights_scale_what_each_token_adds(
    make_run: Callable[..., Any], losses: Callable[..., Any], make_examples: Callable[..., Any]
) -> None:
    (row,) = make_examples([12], first=1)
    once = BatchSettings(max_steps=1)

    def loss(name: str, *weights: float) -> float:
        return losses(make_run([replace(row, weights=weights)], folder=name, batch=once))[0]

    mixed = loss("mixed", 0.0, *(0.1,) * 4, *(1.0,) * 7)
    prompt = loss("prompt", 0.0, *(1.0,) * 4, *(0.0,) * 7)
    answer = loss("answer", *(0.0,) * 5, *(1.0,) * 7)
    assert mixed == pytest.approx((0.1 * 4 * prompt + 7 * answer) / (0.1 * 4 + 7), rel=1e-5)


@pytest.mark.parametrize("method", [SupervisedSettings(neftune_alpha=5.0), PreferenceSettings()])
def test_suspension_between_any_two_quanta_changes_nothing(
    method: Any,
    make_run: Callable[..., Any],
    losses: Callable[..., Any],
    make_rows: Callable[..., Any],
) -> None:
    """Another run, and other random draws, take place between the quanta of the first."""
    settings: dict[str, Any] = {
        "method": method,
        "optimizer": FAST,
        "lora": LoraSettings(rank=4, alpha=8, dropout=0.1),
        "batch": BatchSettings(batch_size=3, num_epochs=2, micro_batch_tokens=60),
    }
    rows = make_rows(method)
    expected_run = make_run(rows, folder="alone", **settings)
    expected = losses(expected_run)
    first = make_run(rows, folder="first", **settings)
    second = make_run(rows[::-1], folder="second", **settings)
    found, chance = [], random.Random(0)
    while not first.has_ended:
        event = first.run_quantum().event
        found += [event.metrics["loss"]] if isinstance(event, StepTaken) else []
        torch.rand(chance.randrange(5))
        for _ in range(chance.randrange(3)):
            if not second.has_ended:
                second.run_quantum()
    assert found == expected
    assert torch.equal(first.factors.values, expected_run.factors.values)


def test_layers_below_the_lowest_adapted_one_get_no_backward(
    make_run: Callable[..., Any], make_examples: Callable[..., Any]
) -> None:
    lora = LoraSettings(rank=2, target_modules=("v_proj",), layers_to_transform=(1, 2))
    run = make_run(make_examples([9]), lora=lora, batch=BatchSettings(max_steps=1))
    quanta = []
    while not run.has_ended:
        quanta.append(run.run_quantum())
    work = [(q.kind, q.layer) for q in quanta if q.kind in ("forward", "backward")]
    assert work == [
        ("forward", 0),
        ("forward", 1),
        ("forward", 2),
        ("backward", 2),
        ("backward", 1),
    ]


@pytest.mark.parametrize("where", ["values", "gradient"])
def test_a_number_that_is_none_stops_the_run_before_anything_moves(
    where: str,
    make_run: Callable[..., Any],
    make_examples: Callable[..., Any],
    finish: Callable[..., Any],
) -> None:
    run = make_run(make_examples(LENGTHS), checkpoint=CheckpointSettings(every_steps=1))
    while run.state.step < 2 or run._writer.is_busy:
        run.run_quantum()
    getattr(run.factors, where)[5] = float("nan")
    values = run.factors.values.clone()
    with pytest.raises(TrainingDiverged, match="learning rate"):
        finish(run)
    assert run.has_ended
    assert not run.ready()
    assert torch.equal(run.factors.values.nan_to_num(), values.nan_to_num())
    kept = make_run(make_examples(LENGTHS), checkpoint=CheckpointSettings(every_steps=1))
    assert kept.state.step in (1, 2)
    assert kept.factors.values.isfinite().all()


def test_validation_is_scored_each_epoch_and_the_best_factors_are_the_result(
    make_run: Callable[..., Any], finish: Callable[..., Any], make_examples: Callable[..., Any]
) -> None:
    """Memorising random ids makes other random ids less likely: it gets worse before long."""
    run = make_run(
        make_examples(LENGTHS[:4]),
        validation=make_examples(LENGTHS[4:], seed=77),
        optimizer=FAST,
        schedule=FLAT,
        batch=BatchSettings(num_epochs=20),
        evaluation=EvaluationSettings(patience=2),
    )
    events = finish(run)
    evaluated = [event for event in events if isinstance(event, Evaluated)]
    losses = [event.metrics["eval_loss"] for event in evaluated]
    best = losses.index(min(losses))
    assert [event.is_best for event in evaluated] == [
        loss == min(losses[: place + 1]) for place, loss in enumerate(losses)
    ]
    assert len(losses) == best + 3 < 20, "two evaluations in a row may be worse"
    assert evaluated[0].metrics["eval_perplexity"] == pytest.approx(
        torch.tensor(losses[0]).exp().item()
    )
    assert 0 <= evaluated[0].metrics["eval_mean_token_accuracy"] <= 1
    assert isinstance(events[-1], RunEnded)
    assert events[-1].reason == "stopped_early"
    saved = {e.step: e.folder for e in events if isinstance(e, CheckpointWritten)}
    best_step = evaluated[best].step
    assert saved[best_step].is_dir()
    assert torch.equal(run.factors.values, run._checkpoints.read(best_step).tensors["values"])
    assert run.state.best_step == best_step


def test_rows_that_cannot_be_trained_on_are_refused_by_line(
    make_run: Callable[..., Any], make_examples: Callable[..., Any]
) -> None:
    rows = make_examples([20, 90])
    with pytest.raises(InvalidTrainingData, match="line 2 has 90 tokens, over micro_batch_tokens"):
        make_run(rows, batch=BatchSettings(micro_batch_tokens=64))
    with pytest.raises(InvalidTrainingData, match="line 1 has 600 tokens, over the 512 positions"):
        make_run(make_examples([600]))
    with pytest.raises(InvalidTrainingData, match="line 7 trains no token"):
        make_run([Example((1, 2), (0.0, 0.0), line=7)])
    with pytest.raises(InvalidTrainingData, match="no rows"):
        make_run([])
    with pytest.raises(InvalidTrainingData, match="needs pairs"):
        make_run(rows, method=PreferenceSettings())
    with pytest.raises(InvalidTrainingData, match="line 3 has an empty"):
        make_run([Preference((1,), (2,), (), line=3)], method=PreferenceSettings())


def test_rows_stay_on_the_disk(tmp_path: Path, make_examples: Callable[..., Any]) -> None:
    num_tokens = 400 * 500
    with DatasetWriter(tmp_path / "rows", DataConfig()) as writer:
        for example in make_examples([500]) * 400:
            writer.add(example)
        writer.finish(Report(format="test"), fingerprint="")
    with PreparedDataset.open(tmp_path / "rows") as rows:
        tracemalloc.start()
        task: Any = make_task(rows, SupervisedSettings())  # type: ignore[arg-type]
        batch = task.pack([3, 399], torch.device("cpu"))
        assert task.num_tokens(399) == 500
        held, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert batch.num_tokens == 1000
    assert held < peak < num_tokens * 4


def test_training_goes_on_from_given_factors(
    make_run: Callable[..., Any], losses: Callable[..., Any], make_examples: Callable[..., Any]
) -> None:
    settings = {"optimizer": FAST, "schedule": FLAT, "batch": BatchSettings(num_epochs=10)}
    rows = make_examples(LENGTHS[:3])
    first = make_run(rows, folder="first", **settings)
    before = losses(first)
    second = make_run(rows, folder="second", start=first.factors.tensors(), **settings)
    after = losses(second)
    assert after[0] < before[-1]


def test_a_run_leaves_the_base_and_the_global_random_state_alone(
    make_run: Callable[..., Any], finish: Callable[..., Any], make_examples: Callable[..., Any]
) -> None:
    run = make_run(
        make_examples(LENGTHS),
        lora=LoraSettings(rank=4, alpha=8, dropout=0.1),
        method=SupervisedSettings(neftune_alpha=5.0),
        optimizer=FAST,
    )
    tensors = dict(run._network._weights.tensors())
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    torch.manual_seed(3)
    state, python_state = torch.get_rng_state(), random.getstate()
    finish(run)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors.items())
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python_state


@pytest.mark.parametrize(("kernels", "use_dora"), [("torch", False), ("cpu", False), ("cpu", True)])
def test_bfloat16_follows_float32_with_float32_factors(
    kernels: str,
    use_dora: bool,
    make_run: Callable[..., Any],
    losses: Callable[..., Any],
    make_examples: Callable[..., Any],
) -> None:
    rows = make_examples(LENGTHS[:4])
    lora = LoraSettings(rank=4, alpha=8, use_dora=use_dora)
    batch = BatchSettings(num_epochs=4)
    settings = {"lora": lora, "optimizer": FAST, "schedule": FLAT, "batch": batch}
    exact = losses(make_run(rows, folder="exact", **settings))
    rounded_run = make_run(rows, folder="rounded", dtype="bfloat16", kernels=kernels, **settings)
    assert rounded_run.factors.values.dtype == torch.float32
    assert losses(rounded_run) == pytest.approx(exact, rel=0.05)


def test_8_bit_moments_follow_the_curve_of_32_bits(
    make_run: Callable[..., Any], losses: Callable[..., Any], make_examples: Callable[..., Any]
) -> None:
    rows, found = make_examples(LENGTHS[:4]), {}
    for kind in OPTIMIZERS:
        optimizer = OptimizerSettings(kind=kind, learning_rate=5e-3)
        settings = {"optimizer": optimizer, "schedule": FLAT, "batch": BatchSettings(num_epochs=30)}
        found[kind] = losses(make_run(rows, folder=kind, **settings))
    assert found["adamw"][-1] < 0.3 * found["adamw"][0]
    assert found["adamw_8bit"] == pytest.approx(found["adamw"], rel=0.05)
    assert found["adamw_8bit"] != found["adamw"]
    # A host's own memory is where pages would go.
    assert found["paged_adamw"] == found["adamw"]
    assert found["paged_adamw_8bit"] == found["adamw_8bit"]


def test_a_float16_base_is_refused(
    make_run: Callable[..., Any], make_examples: Callable[..., Any]
) -> None:
    with pytest.raises(TrainingError, match="bfloat16 or float32"):
        make_run(make_examples([9]), dtype="float16")
