"""Sick runs are told what is wrong with them, healthy ones nothing."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiflora.engine.training.data.finding import Finding
from multiflora.engine.training.data.run_doctor import diagnose

Curve = Callable[[float], float]


def history(
    curve: Curve,
    *,
    eval_curve: Curve | None = None,
    num_steps: int = 200,
    noise: float = 0.05,
    **more: Any,
) -> list[dict[str, Any]]:
    """Losses along ``curve`` over [0, 1], with noise; evaluations at every twentieth step."""
    rng = random.Random(0)
    rows: list[dict[str, Any]] = []
    for step in range(1, num_steps + 1):
        part = step / num_steps
        loss = curve(part) * (1 + rng.uniform(-noise, noise))
        rows.append({"step": step, "loss": loss, "epoch": 3 * part, "grad_norm": 1.0, **more})
        if eval_curve and step % 20 == 0:
            rows.append({"step": step, "eval_loss": eval_curve(part), "epoch": 3 * part})
    return rows


def found(rows: list[dict[str, Any]]) -> dict[str, Finding]:
    return {finding.code: finding for finding in diagnose(rows)}


def healthy(part: float) -> float:
    return 0.8 + 1.5 * math.exp(-5 * part)


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2])
def test_a_healthy_run_is_left_in_peace(noise: float) -> None:
    rows = history(healthy, eval_curve=lambda part: healthy(part) + 0.1, noise=noise)
    assert found(rows) == {}


def test_a_learning_rate_that_is_too_high_lets_the_loss_rise_again() -> None:
    rows = history(lambda part: 2.3 - 4 * part if part < 0.3 else 1.1 + 4 * (part - 0.3))
    diagnosis = found(rows)["diverged"]
    assert diagnosis.severity == "error"
    assert "use a third" in diagnosis.message
    assert 40 <= diagnosis.lines[0] <= 80
    assert "nothing_learnt" not in found(rows)


def test_spikes_are_counted_and_named() -> None:
    rows = history(healthy)
    for step in (50, 90, 130, 131):
        rows[step - 1]["loss"] *= 4
    rows[169]["grad_norm"] = 30.0
    diagnosis = found(rows)["spikes"]
    assert diagnosis.lines == (50, 90, 130, 131, 170)
    assert "5 of 200 steps (2.5 %)" in diagnosis.message


def test_a_single_spike_is_no_illness() -> None:
    rows = history(healthy)
    rows[49]["loss"] *= 4
    assert found(rows) == {}


def test_too_many_epochs_let_the_validation_loss_rise() -> None:
    rows = history(
        lambda part: 2.0 * math.exp(-2 * part) + 0.2,
        eval_curve=lambda part: 1.4 + (part - 0.3) ** 2,
    )
    diagnosis = found(rows)["overfitting"]
    assert diagnosis.lines == (60,)
    assert "step 60 (epoch 0.9)" in diagnosis.message
    assert "from 1.4 to 1.89" in diagnosis.message


def test_a_validation_loss_that_rises_with_the_training_loss_is_not_overfitting() -> None:
    rows = history(lambda part: 1.0 + part, eval_curve=lambda part: 1.0 + part)
    assert "overfitting" not in found(rows)


def test_a_flat_loss_means_that_nothing_was_learnt() -> None:
    diagnosis = found(history(lambda part: 2.3, learning_rate=1e-7))["nothing_learnt"]
    assert diagnosis.severity == "warning"
    assert "learning rate is 1e-07 at most; use five to ten times" in diagnosis.message


@pytest.mark.parametrize(
    ("name", "words"),
    [("grad_norm", "no parameter is trained"), ("learning_rate", "zero throughout")],
)
def test_runs_that_cannot_learn(name: str, words: str) -> None:
    rows = [{**row, name: 0.0} for row in history(lambda part: 2.3)]
    diagnosis = found(rows)["nothing_learnt"]
    assert diagnosis.severity == "error"
    assert words in diagnosis.message


def test_a_loss_that_still_falls_at_the_end_was_learnt_too_slowly() -> None:
    diagnosis = found(history(lambda part: 2.3 - 0.25 * part, noise=0.01))["too_slow"]
    assert "more epochs" in diagnosis.message


def test_a_loss_of_nothing_without_validation_is_memory() -> None:
    rows = history(lambda part: 2.0 * math.exp(-6 * part))
    assert "after 3 epochs" in found(rows)["memorised"].message
    assert "memorised" not in found(
        history(lambda part: 2.0 * math.exp(-6 * part), eval_curve=lambda part: 1 - part)
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["loss", "grad_norm", "eval_loss"])
def test_what_is_no_number_ends_the_run(value: float, name: str) -> None:
    rows = [*history(healthy, num_steps=4), {"step": 5, name: value}]
    (diagnosis,) = diagnose(rows)
    assert (diagnosis.code, diagnosis.lines) == ("not_finite", (5,))
    assert name in diagnosis.message


def test_a_few_steps_say_nothing() -> None:
    assert diagnose([]) == ()
    assert diagnose(history(lambda part: 2.3, num_steps=7)) == ()
    assert diagnose([{"step": 1}, {"step": 2, "loss": None}]) == ()


ROWS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            name: st.one_of(st.none(), st.floats(0, 1e30), st.integers(0, 10))
            for name in ("loss", "eval_loss", "grad_norm", "learning_rate", "epoch")
        },
    ),
    max_size=40,
)


@given(ROWS)
def test_no_history_is_too_strange_to_read(rows: list[dict[str, Any]]) -> None:
    for diagnosis in diagnose([{"step": step, **row} for step, row in enumerate(rows)]):
        assert diagnosis.message
