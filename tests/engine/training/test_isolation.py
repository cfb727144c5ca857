"""Training while serving: neither changes what the other computes, and none can break it."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from itertools import count
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
from multiflora.engine.training.config import BatchSettings, CheckpointSettings
from multiflora.engine.training.data.config import DataConfig
from multiflora.engine.training.data.dataset import DatasetWriter
from multiflora.engine.training.data.report import Report
from multiflora.engine.training.example import Example
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

DORA = dataclasses.replace(
    SETTINGS,
    lora=dataclasses.replace(SETTINGS.lora, use_dora=True),
    optimizer=dataclasses.replace(SETTINGS.optimizer, kind="adamw_8bit"),
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


def watch_logits(bench: Any) -> dict[str, list[torch.Tensor]]:
    """Logits [V] of every token that is drawn from now on, by request."""
    seen: dict[str, list[torch.Tensor]] = {}
    runner = bench.loop._runner
    logits = runner.logits

    def watched(plan: Any) -> torch.Tensor:
        found = logits(plan)
        items = [item for item in plan.items if item.samples]
        for item, row in zip(items, found, strict=True):
            seen.setdefault(item.request.request.id, []).append(row.clone())
        return found

    runner.logits = watched
    return seen


def assert_same_bits(
    found: dict[str, list[torch.Tensor]], expected: dict[str, list[torch.Tensor]]
) -> None:
    assert found.keys() == expected.keys()
    for name, rows in expected.items():
        assert torch.equal(torch.stack(found[name]), torch.stack(rows)), name


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
        ("checkpoint", found(bench, CheckpointExported)[-1].folder),
    ):
        bench.digests[name] = import_adapter(
            Path(str(folder)), projections=projections, store=AdapterStore(tmp_path)
        )
    requests = [bench.request(name, PROMPT) for name in (None, "trained", "checkpoint")]
    bench.run(requests)
    base, trained, checkpoint = (bench.answers[request.id] for request in requests)
    assert base != trained
    assert len(checkpoint) == len(trained) == 8


@pytest.mark.parametrize("settings", [SETTINGS, DORA], ids=["lora", "dora-8bit"])
def test_logits_have_the_same_bits_before_during_and_after_a_job(
    settings: Any, make_bench: Callable[..., Any], make_job: Callable[..., TrainingJob]
) -> None:
    bench, job = make_bench(training=PATIENT), make_job(settings=settings)
    base = bench.loop._background._place.network._weights
    before, seen, during, numbers = digest_base(base), watch_logits(bench), 0, count()

    def ask() -> dict[str, list[torch.Tensor]]:
        when = str(next(numbers))
        seen.clear()
        bench.run(bench.request(name, PROMPT, id=f"{name} {when}", max_tokens=12) for name in NAMES)
        return {id.removesuffix(f" {when}"): rows for id, rows in seen.items()}

    expected = ask()
    assert [len(rows) for rows in expected.values()] == [12] * len(NAMES)
    assert not torch.equal(expected["None"][0], expected["rank-3"][0])
    bench.send(StartTraining(job.document()))
    while not is_over(bench):
        quanta = bench.loop.stats().training.quanta
        assert_same_bits(ask(), expected)
        during += bench.loop.stats().training.quanta > quanta
        bench.turn()
    assert during > 3
    assert isinstance(last(bench), JobEnded)
    assert_same_bits(ask(), expected)
    assert digest_base(base) == before


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


def test_a_poisoned_row_ends_the_job_publishes_nothing_and_leaves_serving_alone(
    make_bench: Callable[..., Any], make_job: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    """A token that nobody sends but the fourth row has no finite embedding."""
    poison = 383
    rows = [Example((5, 6, 7), (0.0, 1.0, 1.0), line) for line in (1, 2, 3)]
    rows.append(Example((5, poison, 7), (0.0, 0.0, 1.0), 4))
    job = make_job(
        data=write_examples(tmp_path / "poisoned", rows),
        settings=dataclasses.replace(
            SETTINGS,
            batch=BatchSettings(batch_size=1, num_epochs=1, shuffle=False),
            checkpoint=CheckpointSettings(every_steps=2),
        ),
    )
    # Its head is a matrix of its own.
    bench = make_bench("mistral", training=PATIENT)
    bench.run([bench.request("rank-3", PROMPT, id="before")])
    embedding = bench.loop._background._place.network._weights.embedding
    with torch.inference_mode():
        embedding[poison] = float("inf")
    failed = finish(bench, job)[-1]
    assert isinstance(failed, JobFailed)
    assert failed.code == "training_diverged"
    assert [event.step for event in found(bench, StepMetrics)] == [1, 2, 3]
    assert not (Path(job.folder) / "adapter").exists()
    assert [event.step for event in found(bench, CheckpointExported)] == [2]
    assert all(tensor.isfinite().all() for tensor in tensors(exported(bench)).values())
    bench.run([bench.request("rank-3", PROMPT, id="after")])
    assert bench.answers["after"] == bench.answers["before"]


@pytest.mark.parametrize("token", [-1, 384])
def test_a_row_with_a_token_that_the_base_has_not_is_refused_by_line(
    token: int, make_bench: Callable[..., Any], make_job: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    """On an accelerator it would take the device down with it."""
    rows = [Example((5, 6, 7), (0.0, 1.0, 1.0), 1), Example((5, 6, token), (0.0, 1.0, 1.0), 2)]
    bench = make_bench(training=PATIENT)
    failed = finish(bench, make_job(data=write_examples(tmp_path / "bad", rows)))[-1]
    assert isinstance(failed, JobFailed)
    assert failed.code == "invalid_training_data"
    assert f"line 2 has the token {token}, the base knows 0 to 383" in failed.message


def write_examples(folder: Path, rows: list[Example]) -> str:
    with DatasetWriter(folder, DataConfig()) as writer:
        for row in rows:
            writer.add(row)
        writer.finish(Report(format="test"), fingerprint="")
    return str(folder)


def exported(bench: Any) -> str:
    return found(bench, CheckpointExported)[-1].folder


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
