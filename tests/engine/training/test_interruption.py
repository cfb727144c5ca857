"""Pausing and cancelling take effect before the next quantum, whatever the run is at."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multiflora.engine.messages import CancelTraining, PauseTraining, ResumeTraining, StartTraining
from multiflora.engine.training.config import (
    BatchSettings,
    CheckpointSettings,
    EvaluationSettings,
    LoraSettings,
    PreferenceSettings,
    TrainingSettings,
)
from multiflora.engine.training.data.config import DataConfig
from multiflora.engine.training.data.dataset import DatasetWriter
from multiflora.engine.training.data.report import Report
from multiflora.engine.training.job import JobEnded, JobPaused, TrainingJob

from .job_bench import PATIENT, finish, found, is_over, last, turn_until

PHASES = {
    "score_references",
    "_take_step",
    "_evaluate",
    "_compare",
    "_write_checkpoint",
    "_end_write",
}
SETTINGS = TrainingSettings(
    method=PreferenceSettings(),
    lora=LoraSettings(rank=2, alpha=2),
    batch=BatchSettings(batch_size=2, num_epochs=1, micro_batch_tokens=60),
    evaluation=EvaluationSettings(every_steps=1),
    checkpoint=CheckpointSettings(every_steps=1),
)


@pytest.fixture
def make_pairs_job(
    make_job: Callable[..., TrainingJob], make_preferences: Callable[..., Any], tmp_path: Path
) -> Callable[[], TrainingJob]:
    """A job of its own at every call, which goes through all phases."""
    numbers, data = count(), str(tmp_path / "pairs")
    with DatasetWriter(tmp_path / "pairs", DataConfig(method="dpo")) as writer:
        for pair in make_preferences([(9, 5, 8), (4, 12, 3), (20, 6, 6), (3, 3, 14)]):
            writer.add(pair)
        writer.finish(Report(format="test"), fingerprint="")
    return lambda: make_job(f"job-{next(numbers)}", data=data, validation=data, settings=SETTINGS)


def test_every_phase_stops_before_its_next_quantum(
    make_bench: Callable[..., Any], make_pairs_job: Callable[[], TrainingJob]
) -> None:
    bench = make_bench(training=PATIENT)
    phases = phases_of(bench, make_pairs_job())
    assert set(phases.values()) == PHASES
    firsts = [min(n for n in phases if phases[n] == phase) for phase in sorted(PHASES)]

    @settings(max_examples=5, deadline=None, database=None)
    @given(st.integers(0, max(phases) - 1), st.booleans())
    def check(point: int, pauses: bool) -> None:
        interrupt(bench, make_pairs_job(), point, pauses=pauses)

    for point in firsts:
        interrupt(bench, make_pairs_job(), point, pauses=True)
    check()
    assert isinstance(finish(bench, make_pairs_job())[-1], JobEnded)


def quanta_of(bench: Any) -> int:
    return bench.loop.stats().training.quanta


def phases_of(bench: Any, job: TrainingJob) -> dict[int, str]:
    """The part of the run that was at work after so many quanta."""
    found = {}
    bench.send(StartTraining(job.document()))
    while not is_over(bench, job.id):
        bench.turn()
        started = bench.loop._background._runs.get(job.id)
        if started and started._run and (part := started._run._quanta.gi_yieldfrom):
            found[quanta_of(bench)] = part.__name__
    return found


def interrupt(bench: Any, job: TrainingJob, point: int, *, pauses: bool) -> None:
    """Cancel the job after ``point`` quanta, or pause it, go on for one more, and cancel it."""
    target = quanta_of(bench) + point
    bench.send(StartTraining(job.document()))
    turn_until(bench, lambda: quanta_of(bench) == target)
    if pauses:
        bench.send(PauseTraining(job.id))
        for _ in range(5):
            bench.turn()
        assert quanta_of(bench) == target
        assert found(bench, JobPaused, job.id)
        bench.send(ResumeTraining(job.id))
        turn_until(bench, lambda: quanta_of(bench) > target or is_over(bench, job.id))
    stopped_at = quanta_of(bench)
    bench.send(CancelTraining(job.id))
    turn_until(bench, lambda: is_over(bench, job.id))
    assert quanta_of(bench) == stopped_at
    ended = last(bench, job.id)
    assert isinstance(ended, JobEnded)
    assert (ended.reason, ended.folder) == ("cancelled", None)
    assert not (Path(job.folder) / "adapter").exists()
    assert bench.loop.stats().training.bytes_used == 0
