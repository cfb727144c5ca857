"""Training while serving: neither side changes what the other computes, and none can break it."""

import dataclasses
import gc
import hashlib
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from multiflora.adapters.folder import WEIGHTS_NAME
from multiflora.adapters.intake import import_adapter
from multiflora.adapters.store import AdapterStore
from multiflora.engine.config import TrainingConfig
from multiflora.engine.messages import (
    CancelTraining,
    PauseTraining,
    ResumeTraining,
    StartTraining,
    Submit,
)
from multiflora.engine.training.config import (
    BatchSettings,
    CheckpointSettings,
    LoraSettings,
    OptimizerSettings,
    TrainingSettings,
)
from multiflora.engine.training.data.config import DataConfig
from multiflora.engine.training.data.dataset import DatasetWriter
from multiflora.engine.training.data.report import Report
from multiflora.engine.training.head import TrainingHead
from multiflora.engine.training.job import (
    CheckpointExported,
    JobEnded,
    JobEvent,
    JobFailed,
    JobPaused,
    JobQueued,
    JobResumed,
    JobStarted,
    StepMetrics,
    TrainingJob,
)
from multiflora.engine.training.layer import TrainingLayer
from multiflora.engine.training.run import TrainingRun, make_task

PROMPT = list(range(10, 40))
NAMES = (None, "rank-3", "rank-16-patterns")
# No quantum of the tiny models is long enough to cut micro-batches.
PATIENT = TrainingConfig(quantum_seconds=60.0, memory_bytes=256 << 20)
SETTINGS = TrainingSettings(
    lora=LoraSettings(rank=4, alpha=8, dropout=0.1),
    batch=BatchSettings(batch_size=2, num_epochs=2, micro_batch_tokens=48),
    optimizer=OptimizerSettings(learning_rate=1e-2),
    checkpoint=CheckpointSettings(every_steps=2),
)


@pytest.fixture
def make_job(tmp_path: Path, make_examples: Callable[..., Any]) -> Callable[..., TrainingJob]:
    """``make_job(id, settings=..., data=..., ...)`` over five short rows."""
    data = tmp_path / "prepared"
    with DatasetWriter(data, DataConfig()) as writer:
        for example in make_examples([20, 30, 10, 40, 25]):
            writer.add(example)
        writer.finish(Report(format="test"), fingerprint="")

    def make(id: str = "job", **changes: Any) -> TrainingJob:
        return TrainingJob(
            **{
                "id": id,
                "data": str(data),
                "folder": str(tmp_path / "jobs" / id),
                "settings": SETTINGS,
                "base_name": "tiny",
                **changes,
            }
        )

    return make


def turn_until(bench: Any, condition: Callable[[], bool], max_turns: int = 20_000) -> None:
    for _ in range(max_turns):
        if condition():
            return
        bench.turn()
    raise AssertionError(f"nothing came of it: {bench.training}")


def is_over(bench: Any, id: str = "job") -> bool:
    return isinstance(last(bench, id), JobEnded | JobFailed)


def last(bench: Any, id: str = "job") -> JobEvent | None:
    return bench.training.get(id, [None])[-1]


def found(bench: Any, kind: type, id: str = "job") -> list[Any]:
    return [event for event in bench.training.get(id, []) if isinstance(event, kind)]


def finish(bench: Any, job: TrainingJob) -> list[JobEvent]:
    bench.send(StartTraining(job.document()))
    turn_until(bench, lambda: is_over(bench, job.id))
    return bench.training[job.id]


def tensors(folder: str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / WEIGHTS_NAME)


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def stand_alone(bench: Any, job: TrainingJob, folder: Path) -> dict[str, torch.Tensor]:
    """The factors of an undisturbed run with the job's micro-batches."""
    from multiflora.engine.training.data.dataset import PreparedDataset

    tokens = found(bench, JobStarted, job.id)[-1].micro_batch_tokens
    batch = dataclasses.replace(job.settings.batch, micro_batch_tokens=tokens)
    settings = dataclasses.replace(job.settings, batch=batch)
    with PreparedDataset.open(Path(job.data)) as dataset:
        rows: Any = list(dataset)
    network = bench.loop._background._place.network
    run = TrainingRun(network, make_task(rows, settings.method), settings, folder=folder)
    while not run.has_ended:
        run.run_quantum()
    return run.factors.tensors()


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
            Path(folder), projections=projections, store=AdapterStore(tmp_path)
        )
    requests = [bench.request(name, PROMPT) for name in (None, "trained", "checkpoint")]
    bench.run(requests)
    base, trained, checkpoint = (bench.answers[request.id] for request in requests)
    assert base != trained
    assert trained != checkpoint or bench.digests["trained"] != bench.digests["checkpoint"]


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
