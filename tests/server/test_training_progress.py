"""A running job in lines that a person can follow, also where there is no terminal."""

import io

import pytest
from rich.console import Console

from multiflora.engine.training.job import EvaluationMetrics, JobEnded, JobStarted, StepMetrics
from multiflora.server import training_progress
from multiflora.server.training_progress import TrainingProgress

NUM_STEPS = 40


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clock says next: a step takes half a second."""
    now = [0.0]
    monkeypatch.setattr(training_progress.time, "monotonic", lambda: now[0])
    return now


def show(losses: list[float], seconds: list[float], **options: bool) -> str:
    out = io.StringIO()
    with TrainingProgress(Console(file=out, width=120, **options)) as progress:  # type: ignore[arg-type]
        progress.begin(
            JobStarted(step=0, num_steps=len(losses), micro_batch_tokens=64, memory_bytes=1)
        )
        for step, loss in enumerate(losses, 1):
            seconds[0] += 0.5
            metrics = {"loss": loss, "num_tokens": 100.0 * step, "epoch": step / 10}
            progress.add(StepMetrics(step, metrics))
            if step % 20 == 0:
                progress.add(EvaluationMetrics(step, {"eval_loss": loss + 0.1}, is_best=True))
        progress.end(JobEnded(reason="finished", step=len(losses), best_step=len(losses)))
    return out.getvalue()


def test_lines_tell_loss_speed_validation_and_time_left(seconds: list[float]) -> None:
    lines = show([2 - step / 40 for step in range(NUM_STEPS)], seconds).splitlines()
    assert lines[0] == "step 1/40: loss 2.0000"
    assert "step 2/40: loss 1.9750, 200 tokens/s, 0:19 left" in lines
    assert "step 20: validation loss 1.6250" in lines
    assert "step 30/40: loss 1.2750, 200 tokens/s, validation 1.6250, 0:05 left" in lines
    assert len(lines) < 30
    assert "the best step was 40, validation loss 1.1250" in lines


def test_a_run_that_went_wrong_is_told_why(seconds: list[float]) -> None:
    shown = show([2.0] * NUM_STEPS, seconds)
    assert "warning" in shown or "error" in shown


def test_a_terminal_gets_a_bar(seconds: list[float]) -> None:
    shown = show([2.0, 1.5], seconds, force_terminal=True)
    assert "training" in shown
    assert "2/2" in shown
