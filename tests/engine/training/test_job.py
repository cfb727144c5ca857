"""Jobs and their events survive the way between two processes."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiflora.engine.messages import Command, Report, StartTraining, Trained
from multiflora.engine.training.config import (
    BatchSettings,
    CheckpointSettings,
    EvaluationSettings,
    LoraSettings,
    OptimizerSettings,
    PreferenceSettings,
    ScheduleSettings,
    SupervisedSettings,
    TrainingSettings,
)
from multiflora.engine.training.job import (
    CheckpointExported,
    EvaluationMetrics,
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

COUNTS = st.integers(1, 1000)
SOME_COUNTS = st.none() | COUNTS
NAMES = st.text("abc_.d", min_size=1, max_size=8)
METHODS = st.builds(SupervisedSettings, neftune_alpha=st.floats(0, 9)) | st.builds(
    PreferenceSettings,
    loss=st.sampled_from(["sigmoid", "robust"]),
    beta=st.floats(0.01, 9),
    label_smoothing=st.floats(0, 0.4),
    sft_weight=st.floats(0, 2),
)
LORA = st.builds(
    LoraSettings,
    rank=COUNTS,
    alpha=st.floats(0.1, 99),
    use_rslora=st.booleans(),
    dropout=st.floats(0, 0.9),
    target_modules=st.just("all-linear") | st.lists(NAMES, min_size=1).map(tuple),
    exclude_modules=st.lists(NAMES).map(tuple),
    rank_pattern=st.dictionaries(NAMES, COUNTS),
    alpha_pattern=st.dictionaries(NAMES, st.floats(0.1, 99)),
    layers_to_transform=st.none() | st.lists(COUNTS).map(tuple),
    init=st.sampled_from(["kaiming", "gaussian"]),
    use_dora=st.booleans(),
)
SETTINGS = st.builds(
    TrainingSettings,
    method=METHODS,
    lora=LORA,
    optimizer=st.builds(OptimizerSettings, learning_rate=st.floats(1e-9, 1)),
    schedule=st.builds(
        ScheduleSettings, kind=st.sampled_from(["linear", "cosine"]), warmup_steps=SOME_COUNTS
    ),
    batch=st.builds(
        BatchSettings, batch_size=COUNTS, max_steps=SOME_COUNTS, micro_batch_tokens=COUNTS
    ),
    evaluation=st.builds(EvaluationSettings, every_steps=SOME_COUNTS, patience=SOME_COUNTS),
    checkpoint=st.builds(CheckpointSettings, every_steps=SOME_COUNTS, keep=COUNTS),
    seed=st.integers(0, 2**63 - 1),
)
JOBS = st.builds(
    TrainingJob,
    id=NAMES,
    data=NAMES,
    folder=NAMES,
    settings=SETTINGS,
    base_name=NAMES,
    validation=st.none() | NAMES,
    start=st.none() | NAMES,
    reference=st.none() | NAMES,
)


def over_the_wire(message: Any, kind: Any) -> Any:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=kind)


@given(JOBS)
def test_a_job_arrives_as_it_was_sent(job: TrainingJob) -> None:
    command = over_the_wire(StartTraining(job.document()), Command)
    assert TrainingJob.from_document(command.job) == job


@given(JOBS)
def test_a_job_can_be_kept_as_json(job: TrainingJob) -> None:
    assert (
        TrainingJob.from_document(msgspec.json.decode(msgspec.json.encode(job.document()))) == job
    )


@pytest.mark.parametrize(
    "event",
    [
        JobQueued(2),
        JobStarted(step=3, num_steps=9, micro_batch_tokens=512, memory_bytes=1 << 30),
        StepMetrics(4, {"loss": 1.5}),
        EvaluationMetrics(4, {"eval_loss": 1.25}, True),
        CheckpointExported(4, "/jobs/1/exports/step-00000004"),
        JobPaused(4),
        JobResumed(4),
        JobEnded(reason="stopped_early", step=5, best_step=4, folder="/jobs/1/adapter"),
        JobFailed("training_diverged", "the loss is nan"),
    ],
    ids=lambda event: type(event).__name__,
)
def test_an_event_arrives_as_it_was_sent(event: JobEvent) -> None:
    report = Trained("job-1", event)
    assert over_the_wire(report, Report) == report


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"settings": {}}, "method"),
        ({"id": 5}, "str"),
        ({"surplus": 1}, "surplus"),
    ],
    ids=["no-method", "wrong-type", "unknown-field"],
)
def test_a_document_that_no_job_made_is_refused(change: dict[str, Any], problem: str) -> None:
    job = TrainingJob(id="a", data="b", folder="c", settings=TrainingSettings(), base_name="d")
    with pytest.raises(ValueError, match=problem):
        TrainingJob.from_document({**job.document(), **change})


def test_settings_outside_their_limits_are_refused_with_the_limit() -> None:
    job = TrainingJob(id="a", data="b", folder="c", settings=TrainingSettings(), base_name="d")
    document = job.document()
    document["settings"]["lora"]["rank"] = 0
    with pytest.raises(ValueError, match="rank is 0; it must be 1 to 1024"):
        TrainingJob.from_document(document)
