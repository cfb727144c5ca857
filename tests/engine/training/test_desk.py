"""Jobs wait, run, pause, end and go on as they are told, in an engine that serves."""

import dataclasses
import gc
import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from multiflora.adapters.intake import import_adapter
from multiflora.adapters.store import AdapterStore
from multiflora.engine.messages import (
    CancelTraining,
    PauseTraining,
    ResumeTraining,
    StartTraining,
)
from multiflora.engine.training import desk
from multiflora.engine.training.config import LoraSettings, PreferenceSettings, TrainingSettings
from multiflora.engine.training.data.config import DataConfig
from multiflora.engine.training.data.dataset import DatasetWriter
from multiflora.engine.training.data.report import Report
from multiflora.engine.training.job import (
    CheckpointExported,
    JobEnded,
    JobFailed,
    JobPaused,
    JobQueued,
    JobResumed,
    JobStarted,
    StepMetrics,
    TrainingJob,
)
from multiflora.engine.training.job_run import JobRun

from .job_bench import (
    PATIENT,
    SETTINGS,
    assert_equal,
    finish,
    found,
    is_over,
    last,
    stand_alone,
    tensors,
    turn_until,
)


def test_pausing_stops_within_a_quantum_and_changes_no_result(
    make_bench: Callable[..., Any], make_job: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    bench, job = make_bench(training=PATIENT), make_job()
    bench.send(StartTraining(job.document()))
    for step in (1, 3):
        turn_until(bench, lambda step=step: len(found(bench, StepMetrics)) >= step)
        before = bench.loop.stats().training.quanta
        bench.send(PauseTraining("job"), PauseTraining("job"))
        for _ in range(30):
            bench.turn()
        stats = bench.loop.stats().training
        assert stats.quanta == before
        assert (stats.num_running, stats.num_paused) == (0, 1)
        assert stats.bytes_used > 0
        bench.send(ResumeTraining("job"))
    turn_until(bench, lambda: is_over(bench))
    assert len(found(bench, JobPaused)) == len(found(bench, JobResumed)) == 2
    assert_equal(tensors(last(bench).folder), stand_alone(bench, job, tmp_path / "alone"))  # type: ignore[union-attr,arg-type]


@pytest.mark.parametrize(("shared_weights", "threads"), [(1 << 60, 1), (0, 2)])
def test_a_small_base_is_trained_by_one_thread_and_served_by_all(
    make_bench: Callable[..., Any],
    make_job: Callable[..., TrainingJob],
    monkeypatch: pytest.MonkeyPatch,
    shared_weights: int,
    threads: int,
) -> None:
    seen = set()
    advance = JobRun.advance

    def watched(run: JobRun) -> Any:
        seen.add(torch.get_num_threads())
        return advance(run)

    monkeypatch.setattr(JobRun, "advance", watched)
    monkeypatch.setattr(desk, "_SHARED_WEIGHTS", shared_weights)
    before = torch.get_num_threads()
    bench = make_bench(training=PATIENT)
    torch.set_num_threads(2)
    try:
        bench.send(StartTraining(make_job().document()))
        turn_until(bench, lambda: is_over(bench))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == {threads}


def test_cancelling_stops_within_a_quantum_and_frees_everything(
    make_bench: Callable[..., Any], make_job: Callable[..., TrainingJob]
) -> None:
    bench, job = make_bench(training=PATIENT), make_job()
    bench.send(StartTraining(job.document()))
    turn_until(bench, lambda: len(found(bench, StepMetrics)) == 3)
    run = bench.loop._background._runs["job"]._run
    values, run = weakref.ref(run.factors.values), None
    before = bench.loop.stats().training.quanta
    bench.send(CancelTraining("job"))
    turn_until(bench, lambda: is_over(bench))
    stats = bench.loop.stats().training
    assert stats.quanta == before
    ended = last(bench)
    assert isinstance(ended, JobEnded)
    assert (ended.reason, ended.step, ended.folder) == ("cancelled", 3, None)
    assert not (Path(job.folder) / "adapter").exists()
    assert stats.bytes_used == 0
    gc.collect()
    assert values() is None


@pytest.mark.parametrize("when", ["queued", "opening"])
def test_a_job_can_be_cancelled_before_it_trains(
    when: str, make_bench: Callable[..., Any], make_job: Callable[..., TrainingJob]
) -> None:
    bench = make_bench(training=PATIENT)
    bench.send(StartTraining(make_job().document()))
    if when == "opening":
        bench.turn()
    bench.send(CancelTraining("job"), CancelTraining("nobody"))
    turn_until(bench, lambda: is_over(bench))
    assert last(bench) == JobEnded(reason="cancelled", step=0)
    assert isinstance(finish(bench, make_job("next"))[-1], JobEnded)


def test_jobs_run_one_after_another_and_past_a_paused_one(
    make_bench: Callable[..., Any], make_job: Callable[..., TrainingJob]
) -> None:
    bench = make_bench(training=PATIENT)
    bench.send(*(StartTraining(make_job(name).document()) for name in "abc"))
    turn_until(bench, lambda: len(found(bench, StepMetrics, "a")) == 2)
    assert [found(bench, JobQueued, name)[0].num_ahead for name in "abc"] == [0, 1, 2]
    assert bench.loop.stats().training.num_queued == 2
    bench.send(PauseTraining("a"))
    turn_until(bench, lambda: is_over(bench, "b"))
    assert len(found(bench, StepMetrics, "a")) == 2
    bench.send(ResumeTraining("a"))
    turn_until(bench, lambda: is_over(bench, "a"))
    assert not found(bench, StepMetrics, "c")
    turn_until(bench, lambda: is_over(bench, "c"))
    a, b, c = (tensors(last(bench, name).folder) for name in "abc")  # type: ignore[union-attr]
    assert_equal(a, b)
    assert_equal(a, c)


def test_an_interrupted_job_goes_on_from_its_last_checkpoint_in_another_engine(
    make_bench: Callable[..., Any], make_job: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    first, job = make_bench(training=PATIENT), make_job()
    first.send(StartTraining(job.document()))
    turn_until(first, lambda: len(found(first, StepMetrics)) == 5)
    first.loop.close()
    second = make_bench(training=PATIENT)
    finish(second, job)
    started = found(second, JobStarted)[0]
    assert started.step == 4
    assert [event.step for event in found(second, CheckpointExported)] == [2, 4, 6]
    assert_equal(tensors(last(second).folder), stand_alone(second, job, tmp_path / "alone"))  # type: ignore[union-attr,arg-type]


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"data": "/nowhere"}, "dataset_damaged", "prepare the file again"),
        ({"start": "0" * 64}, "unknown_version", "not in the store"),
        ({"reference": "0" * 64}, "unknown_version", "not in the store"),
        (
            {"settings": TrainingSettings(lora=LoraSettings(target_modules=("nothing",)))},
            "invalid_training_settings",
            "target_modules",
        ),
    ],
    ids=["no-data", "no-start", "no-reference", "no-target"],
)
def test_a_job_that_cannot_start_says_why_and_the_next_one_runs(
    change: dict[str, Any],
    code: str,
    message: str,
    make_bench: Callable[..., Any],
    make_job: Callable[..., TrainingJob],
) -> None:
    bench = make_bench(training=PATIENT)
    failed = finish(bench, make_job(**change))[-1]
    assert isinstance(failed, JobFailed)
    assert failed.code == code
    assert message in failed.message
    assert isinstance(finish(bench, make_job("next"))[-1], JobEnded)


@pytest.mark.parametrize("reference", [None, "rank-3"])
def test_preferences_are_measured_against_the_base_or_a_stored_version(
    reference: str | None,
    make_bench: Callable[..., Any],
    make_job: Callable[..., TrainingJob],
    make_preferences: Callable[..., Any],
    tmp_path: Path,
) -> None:
    bench = make_bench(training=PATIENT)
    with DatasetWriter(tmp_path / "pairs", DataConfig(method="dpo")) as writer:
        for pair in make_preferences([(9, 5, 8), (4, 12, 3)]):
            writer.add(pair)
        writer.finish(Report(format="test"), fingerprint="")
    settings = dataclasses.replace(
        SETTINGS, method=PreferenceSettings(), lora=LoraSettings(rank=4, alpha=8)
    )
    digest = bench.digests[reference] if reference else None
    job = make_job(data=str(tmp_path / "pairs"), settings=settings, reference=digest)
    assert isinstance(finish(bench, job)[-1], JobEnded)
    # At the first step the policy is the base: against itself no pair is preferred.
    loss = found(bench, StepMetrics)[0].metrics["loss"]
    assert (loss == pytest.approx(math.log(2), abs=1e-5)) == (reference is None)


def test_a_dora_version_is_gone_on_from_and_measured_against(
    make_bench: Callable[..., Any],
    make_job: Callable[..., TrainingJob],
    make_preferences: Callable[..., Any],
    tmp_path: Path,
) -> None:
    bench = make_bench(training=PATIENT)
    dora = dataclasses.replace(SETTINGS, lora=LoraSettings(rank=4, alpha=8, use_dora=True))
    first = finish(bench, make_job("first", settings=dora))[-1]
    projections = bench.loop._background._place.network.config.adapter_projections()
    digest = import_adapter(
        Path(first.folder),  # type: ignore[union-attr,arg-type]
        projections=projections,
        store=AdapterStore(tmp_path),
    )
    refused = finish(bench, make_job("plain", settings=SETTINGS, start=digest))[-1]
    assert isinstance(refused, JobFailed)
    assert "scale 2 with DoRA at" in refused.message
    with DatasetWriter(tmp_path / "pairs", DataConfig(method="dpo")) as writer:
        for pair in make_preferences([(9, 5, 8), (4, 12, 3)]):
            writer.add(pair)
        writer.finish(Report(format="test"), fingerprint="")
    settings = dataclasses.replace(dora, method=PreferenceSettings())
    again = {"start": digest, "reference": digest, "settings": settings}
    last_event = finish(bench, make_job("next", data=str(tmp_path / "pairs"), **again))[-1]
    assert isinstance(last_event, JobEnded), last_event
    # It starts at the reference itself.
    loss = found(bench, StepMetrics, "next")[0].metrics["loss"]
    assert loss == pytest.approx(math.log(2), abs=1e-5)
