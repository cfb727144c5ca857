"""Training while serving: neither changes what the other computes, and none can break it."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from multiflora.adapters.intake import import_adapter
from multiflora.adapters.store import AdapterStore
from multiflora.engine.messages import (
    StartTraining,
    Submit,
)
from multiflora.engine.training.head import TrainingHead
from multiflora.engine.training.job import (
    CheckpointExported,
    JobEnded,
    JobFailed,
    JobQueued,
    JobStarted,
    StepMetrics,
    TrainingJob,
)
from multiflora.engine.training.layer import TrainingLayer

from .job_bench import (
    NAMES,
    PATIENT,
    PROMPT,
    assert_equal,
    finish,
    found,
    is_over,
    last,
    stand_alone,
    tensors,
    turn_until,
)


def digest_base(value: Any) -> str:
    """A hash of all tensors of the resident base."""
    total = hashlib.sha256()

    def add(part: Any) -> Iterator[None]:
        if isinstance(part, torch.Tensor):
            total.update(part.contiguous().view(torch.uint8).numpy().tobytes())
        elif isinstance(part, list | tuple):
            for item in part:
                yield from add(item)
        elif dataclasses.is_dataclass(part):
            for field in dataclasses.fields(part):
                yield from add(getattr(part, field.name))

    list(add(value))
    assert total.digest() != hashlib.sha256().digest()
    return total.hexdigest()


def test_a_job_trains_as_if_it_were_alone_and_leaves_nothing_behind(
    make_bench: Callable[..., Any], make_job: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    bench, job = make_bench(training=PATIENT), make_job()
    base = bench.loop._background._place.network._weights
    before = digest_base(base)
    events = finish(bench, job)
    assert isinstance(events[0], JobQueued)
    assert isinstance(events[1], JobStarted)
    assert [event.step for event in found(bench, StepMetrics)] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in found(bench, CheckpointExported)] == [2, 4, 6]
    ended = events[-1]
    assert isinstance(ended, JobEnded)
    assert (ended.reason, ended.step) == ("finished", 6)
    assert ended.folder is not None
    alone = stand_alone(bench, job, tmp_path / "alone")
    assert_equal(tensors(ended.folder), alone)
    assert_equal(tensors(found(bench, CheckpointExported)[-1].folder), alone)
    assert digest_base(base) == before
    stats = bench.loop.stats().training
    assert (stats.num_running, stats.num_queued, stats.bytes_used) == (0, 0, 0)
    assert (stats.steps, stats.tokens) == (6, 2 * 125)
    assert stats.quanta > 6
    assert stats.seconds > 0


def test_an_exported_adapter_is_served(
    make_bench: Callable[..., Any], make_job: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    bench = make_bench(training=PATIENT)
    finish(bench, make_job())
    projections = bench.loop._background._place.network.config.adapter_projections()
    for name, folder in (
        ("trained", last(bench).folder),  # type: ignore[union-attr]
        ("checkpoint", found(bench, CheckpointExported)[0].folder),
    ):
        bench.digests[name] = import_adapter(
            Path(str(folder)), projections=projections, store=AdapterStore(tmp_path)
        )
    requests = [bench.request(name, PROMPT) for name in (None, "trained", "checkpoint")]
    bench.run(requests)
    base, trained, checkpoint = (bench.answers[request.id] for request in requests)
    assert base != trained
    assert len(checkpoint) == len(trained) == 8
    assert bench.digests["trained"] != bench.digests["checkpoint"]


def test_answers_are_the_same_before_during_and_after_a_job(
    make_bench: Callable[..., Any], make_job: Callable[..., TrainingJob]
) -> None:
    bench, job = make_bench(training=PATIENT), make_job()
    during = 0

    def ask(when: str) -> list[list[int]]:
        requests = [bench.request(n, PROMPT, id=f"{when} {n}", max_tokens=12) for n in NAMES]
        bench.run(requests)
        return [bench.answers[request.id] for request in requests]

    before = ask("before")
    bench.send(StartTraining(job.document()))
    while not is_over(bench):
        steps = bench.loop.stats().training.quanta
        assert ask(f"during {during}") == before
        during += bench.loop.stats().training.quanta > steps
        bench.turn()
    assert during > 3
    assert isinstance(last(bench), JobEnded)
    assert ask("after") == before


def test_requests_do_not_change_what_is_learned(
    make_bench: Callable[..., Any], make_job: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    bench, job = make_bench(training=PATIENT), make_job()
    bench.send(StartTraining(job.document()))
    number = 0
    while not is_over(bench):
        if not bench.loop.stats().num_running:
            number += 1
            bench.send(Submit(bench.request("rank-3", PROMPT, id=str(number), max_tokens=20)))
        bench.turn()
    assert number > 1
    assert_equal(tensors(last(bench).folder), stand_alone(bench, job, tmp_path / "alone"))  # type: ignore[union-attr,arg-type]


def test_a_crash_in_a_run_ends_the_job_and_nothing_else(
    make_bench: Callable[..., Any],
    make_job: Callable[..., TrainingJob],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = make_bench(training=PATIENT)
    bench.run([bench.request("rank-3", PROMPT, id="before")])

    def crash(*arguments: object) -> None:
        raise RuntimeError("a secret path /etc/shadow")

    bench.send(StartTraining(make_job().document()))
    turn_until(bench, lambda: len(found(bench, StepMetrics)) == 3)
    with monkeypatch.context() as patched:
        patched.setattr(TrainingLayer, "forward", crash)
        turn_until(bench, lambda: is_over(bench))
    failed = last(bench)
    assert isinstance(failed, JobFailed)
    assert failed.code == "training_failed"
    assert "secret" not in failed.message
    assert bench.loop.stats().training.bytes_used == 0
    bench.run([bench.request("rank-3", PROMPT, id="after")])
    assert bench.answers["after"] == bench.answers["before"]
    assert isinstance(finish(bench, make_job("next"))[-1], JobEnded)


def test_a_loss_that_is_not_finite_ends_the_job_and_publishes_nothing(
    make_bench: Callable[..., Any],
    make_job: Callable[..., TrainingJob],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench, job = make_bench(training=PATIENT), make_job()
    score = TrainingHead.score

    def poisoned(*arguments: Any, **settings: Any) -> Any:
        scores = score(*arguments, **settings)
        return dataclasses.replace(scores, log_probs=scores.log_probs * float("nan"))

    monkeypatch.setattr(TrainingHead, "score", poisoned)
    failed = finish(bench, job)[-1]
    assert isinstance(failed, JobFailed)
    assert failed.code == "training_diverged"
    assert not (Path(job.folder) / "adapter").exists()
    assert not (Path(job.folder) / "exports").exists()
