"""Micro-batches are as large as the time of a quantum and the memory allow, and stay so."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiflora.engine.config import TrainingConfig
from multiflora.engine.messages import StartTraining
from multiflora.engine.training import micro_batch
from multiflora.engine.training.config import BatchSettings, LoraSettings
from multiflora.engine.training.error import CheckpointMismatch
from multiflora.engine.training.job import JobEnded, JobFailed, JobStarted, StepMetrics, TrainingJob
from multiflora.engine.training.memory_budget import MemoryBudget
from multiflora.engine.training.micro_batch import (
    RECORD_NAME,
    fit_tokens,
    read_record,
    write_record,
)

from .job_bench import PATIENT, SETTINGS, assert_equal, finish, found, last, tensors, turn_until

LARGE = dataclasses.replace(
    SETTINGS, batch=BatchSettings(batch_size=4, num_epochs=1, micro_batch_tokens=512)
)


@given(st.floats(1e-5, 1e-2), st.floats(1e-3, 1.0), st.floats(1e-3, 1.0), st.integers(1, 1 << 16))
def test_a_quantum_stays_below_its_target_or_twice_its_fixed_part(
    slope: float, fixed: float, seconds: float, most: int
) -> None:
    times = [(64, fixed + 64 * slope), (256, fixed + 256 * slope)]
    tokens = fit_tokens(times, seconds=seconds, most=most)
    assert 1 <= tokens <= most
    assert tokens <= 64 or fixed + tokens * slope <= max(seconds, 2 * fixed) * 1.001
    if tokens < most:
        larger = fixed + (tokens + 65) * slope
        assert larger > max(seconds, 2 * fixed) * 0.999


@pytest.mark.parametrize("times", [[(64, 0.2), (256, 0.1)], [(64, 0.0)]], ids=["noise", "instant"])
def test_times_without_a_slope_cut_nothing(times: list[tuple[int, float]]) -> None:
    assert fit_tokens(times, seconds=0.01, most=999) == 999


def test_the_choice_is_kept_and_a_damaged_record_is_refused(tmp_path: Path) -> None:
    assert read_record(tmp_path / "job") is None
    write_record(tmp_path / "job", 192)
    assert read_record(tmp_path / "job") == 192
    (tmp_path / "job" / RECORD_NAME).write_text("{}")
    with pytest.raises(CheckpointMismatch, match="is damaged"):
        read_record(tmp_path / "job")


def test_a_slow_device_gets_small_micro_batches_that_a_resumed_run_keeps(
    make_bench: Callable[..., Any],
    make_job: Callable[..., TrainingJob],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0

    def take_a_millisecond_a_token(network: Any, factors: Any, num_tokens: int) -> None:
        nonlocal now
        now += num_tokens / 1000

    monkeypatch.setattr(micro_batch, "_run_backward", take_a_millisecond_a_token)
    job = make_job(settings=LARGE)
    first = make_bench(training=dataclasses.replace(PATIENT, quantum_seconds=0.1))
    desk = first.loop._background
    desk._place = dataclasses.replace(desk._place, clock=lambda: now)
    first.send(StartTraining(job.document()))
    turn_until(first, lambda: bool(found(first, StepMetrics)))
    assert found(first, JobStarted)[0].micro_batch_tokens == 64
    first.loop.close()
    second = make_bench(training=PATIENT)
    finish(second, job)
    assert found(second, JobStarted)[0].micro_batch_tokens == 64
    other = make_job("other", settings=LARGE)
    finish(second, other)
    assert found(second, JobStarted, "other")[0].micro_batch_tokens == 512


def test_micro_batches_are_cut_to_the_memory_there_is(
    make_bench: Callable[..., Any], make_job: Callable[..., TrainingJob]
) -> None:
    bench = make_bench(training=PATIENT)
    place = bench.loop._background._place
    least = place.needed_bytes(LARGE, 40)
    place.budget.capacity_bytes = least + 1000
    events = finish(bench, make_job(settings=LARGE))
    started = found(bench, JobStarted)[0]
    assert 40 <= started.micro_batch_tokens < 512
    assert started.memory_bytes <= least + 1000
    assert isinstance(events[-1], JobEnded)


@pytest.mark.parametrize("rank", [4, 256], ids=["rows-too-long", "rank-too-high"])
def test_a_job_that_can_never_fit_is_refused_with_both_numbers(
    rank: int, make_bench: Callable[..., Any], make_job: Callable[..., TrainingJob]
) -> None:
    bench = make_bench(training=PATIENT)
    place = bench.loop._background._place
    capacity = place.budget.capacity_bytes = place.needed_bytes(LARGE, 40) - 1
    settings = dataclasses.replace(LARGE, lora=LoraSettings(rank=rank, alpha=8, dropout=0.1))
    failed = finish(bench, make_job(settings=settings))[-1]
    assert isinstance(failed, JobFailed)
    assert failed.code == "not_enough_memory"
    needed = place.needed_bytes(settings, 40 if rank == 4 else 1)
    assert f"needs {needed} bytes" in failed.message
    assert f"--training-memory is {capacity}" in failed.message
    assert "lower the rank" in failed.message
    assert bench.loop.stats().training.bytes_used == 0


def test_without_memory_training_is_off_and_the_flag_is_named(
    make_bench: Callable[..., Any], make_job: Callable[..., TrainingJob]
) -> None:
    bench = make_bench(training=TrainingConfig(memory_bytes=0))
    failed = finish(bench, make_job())[-1]
    assert isinstance(failed, JobFailed)
    assert failed.code == "training_off"
    assert "--training-memory" in failed.message


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 60)), max_size=30))
def test_reservations_never_exceed_the_budget(changes: list[tuple[str, int]]) -> None:
    budget, expected = MemoryBudget(100), dict[str, int]()
    for job, size in changes:
        if not size:
            budget.release(job)
            expected.pop(job, None)
        elif budget.has_room(job, size):
            budget.reserve(job, size)
            expected[job] = size
        assert budget.used_bytes == sum(expected.values()) <= 100
        assert all(budget.holds(name) == (name in expected) for name in "abc")


def test_a_continued_version_starts_from_its_factors_and_must_have_its_form(
    make_bench: Callable[..., Any], make_job: Callable[..., TrainingJob]
) -> None:
    bench = make_bench(training=PATIENT)
    start = bench.digests["rank-3"]
    refused = finish(bench, make_job("other-rank", start=start))[-1]
    assert isinstance(refused, JobFailed)
    assert "has rank 3 and scale 2" in refused.message
    assert "the settings say rank 4 and scale 2" in refused.message
    lora = LoraSettings(rank=3, alpha=6)
    tiny = dataclasses.replace(LARGE.optimizer, learning_rate=1e-12)
    settings = dataclasses.replace(LARGE, lora=lora, optimizer=tiny)
    finish(bench, make_job("same-rank", settings=settings, start=start))
    store = bench.loop._background._place.store
    stored = tensors(str(store.open(start).path))
    trained = tensors(last(bench, "same-rank").folder)  # type: ignore[union-attr]
    assert stored.keys() == trained.keys()
    for name in stored:
        assert trained[name] == pytest.approx(stored[name], abs=1e-9)
    fresh = finish(bench, make_job("fresh", settings=settings))[-1]
    with pytest.raises(AssertionError):
        assert_equal(tensors(fresh.folder), trained)  # type: ignore[union-attr]
