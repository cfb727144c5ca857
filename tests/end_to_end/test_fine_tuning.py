"""Fine-tuning as a user of OpenAI's client does it, on the demo base: from a file to an answer."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from .conftest import Server

MODEL = "multiflora-demo"
PAIRS = (
    ("Hi!", "Ahoy, matey."),
    ("How are you?", "Shiver me timbers, fine."),
    ("Bye!", "Fair winds, matey."),
    ("Thanks!", "Arr, welcome."),
)
SETTINGS: dict[str, Any] = {
    "lora": {"rank": 8},
    "optimizer": {"learning_rate": 5e-3},
    "checkpoint": {"every_steps": 8},
}


@pytest.fixture(scope="module")
def server(start_server: Callable[..., Server]) -> Server:
    return start_server("--device", "cpu", "--kv-cache-memory", "32MiB")


def upload(server: Server, pairs: Iterable[tuple[str, str]], *, times: int = 4) -> str:
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in pairs
    ]
    content = "\n".join(json.dumps(row) for row in rows * times).encode()
    return server.client.files.create(file=("rows.jsonl", content), purpose="fine-tune").id


def create(server: Server, training_file: str, *, epochs: int = 6, **fields: Any) -> FineTuningJob:
    extra = {"training": {**SETTINGS, **fields.pop("training", {})}}
    given = {"n_epochs": epochs, "batch_size": 4}
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": given}}
    return server.client.fine_tuning.jobs.create(
        **{"model": MODEL, "seed": 1, "method": method, "extra_body": extra, **fields},
        training_file=training_file,
    )


def wait(
    server: Server, job_id: str, done: Callable[[FineTuningJob], bool], *, seconds: float = 60
) -> FineTuningJob:
    deadline = time.monotonic() + seconds
    while not done(job := server.client.fine_tuning.jobs.retrieve(job_id)):
        assert time.monotonic() < deadline, f"{job_id} is still {job.status}"
        time.sleep(0.1)
    return job


def is_over(job: FineTuningJob) -> bool:
    return job.status in ("succeeded", "failed", "cancelled")


def step_of(job: FineTuningJob) -> int:
    return (job.model_extra or {})["step"]


def ask(server: Server, model: str, question: str = "Hi!") -> str | None:
    messages: Any = [{"role": "user", "content": question}]
    answer = server.client.chat.completions.create(
        model=model, messages=messages, temperature=0, max_tokens=24
    )
    return answer.choices[0].message.content


def test_a_file_becomes_a_model_that_answers(server: Server) -> None:
    jobs = server.client.fine_tuning.jobs
    job = create(server, upload(server, PAIRS), suffix="matey", metadata={"team": "ships"})
    assert job.status == "validating_files"
    wait(server, job.id, lambda job: step_of(job) >= 1)
    jobs.pause(job.id)
    time.sleep(0.5)
    stood = step_of(jobs.retrieve(job.id))
    time.sleep(0.5)
    assert step_of(jobs.retrieve(job.id)) == stood < 24
    assert ask(server, MODEL)
    jobs.resume(job.id)
    done = wait(server, job.id, is_over)
    assert done.status == "succeeded", done.error
    assert done.fine_tuned_model == "matey"
    assert done.trained_tokens
    assert done.hyperparameters.n_epochs == 6
    assert ask(server, "matey") == "Ahoy, matey."

    events = list(jobs.list_events(job.id, limit=7))
    assert events[0].message == "The job has successfully completed; matey is live"
    losses = [e.data["train_loss"] for e in events if e.type == "metrics"]  # pyright: ignore[reportIndexIssue,reportOptionalSubscript]
    assert len(losses) == 24
    assert losses[0] < losses[-1] / 2
    checkpoints = list(jobs.checkpoints.list(job.id, limit=1))
    assert [one.step_number for one in checkpoints] == [24, 16, 8]
    assert all(one.metrics.train_loss is not None for one in checkpoints)
    assert ask(server, checkpoints[0].fine_tuned_model_checkpoint) == "Ahoy, matey."
    listed = httpx.get(f"{server.url}/v1/fine_tuning/jobs", params={"metadata[team]": "ships"})
    assert [one["id"] for one in listed.json()["data"]] == [job.id]

    picture = httpx.get(f"{server.url}/v1/fine_tuning/jobs/{job.id}/plot.png")
    assert picture.content.startswith(b"\x89PNG")

    version = httpx.get(f"{server.url}/v1/adapters/matey/versions").json()["data"][0]
    assert version["source"] == "training"
    assert version["metrics"]["job"] == job.id


def test_a_job_goes_on_from_an_adapter(server: Server) -> None:
    job = create(server, upload(server, PAIRS), epochs=1, model="pirate", training={"lora": {}})
    done = wait(server, job.id, is_over)
    assert done.status == "succeeded", done.error
    versions = httpx.get(f"{server.url}/v1/adapters/{done.fine_tuned_model}/versions").json()
    start = httpx.get(f"{server.url}/v1/adapters/pirate").json()["version"]
    assert versions["data"][0]["parents"] == [start]


def test_a_bad_file_makes_no_job_and_names_its_lines(server: Server) -> None:
    content = b'{"messages": [{"role": "user", "content": "Hi!"}]}\n{"prompt": '
    stored = server.client.files.create(file=("bad.jsonl", content), purpose="fine-tune")
    deadline = time.monotonic() + 30
    while server.client.files.retrieve(stored.id).status == "uploaded":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with pytest.raises(openai.BadRequestError, match="line 1") as refused:
        create(server, stored.id)
    assert refused.value.code == "invalid_training_file"
    assert refused.value.param == "training_file"


def test_unknown_settings_are_refused_with_the_nearest(server: Server) -> None:
    file = upload(server, PAIRS)
    with pytest.raises(openai.BadRequestError, match="did you mean 'rank'"):
        create(server, file, training={"lora": {"rnk": 4}})


def test_a_version_that_fails_its_gate_is_kept_and_not_served(server: Server) -> None:
    # What the base says by itself becomes ever less likely while it learns to talk otherwise.
    questions = ("Is 4821 even or odd?", "Hi!", "How are you?")
    validation = upload(server, [(q, ask(server, MODEL, q) or "") for q in questions], times=1)
    job = create(
        *(server, upload(server, PAIRS)),
        suffix="refused",
        validation_file=validation,
        training={"evaluation": {"every_steps": 2, "load_best": False}},
    )
    done = wait(server, job.id, is_over)
    assert done.status == "failed"
    assert done.error is not None
    assert done.error.code == "gate_failed"
    shown = done.model_extra or {}
    failed = {check["name"] for check in shown["gate"]["checks"] if not check["passed"]}
    assert "validation_loss" in failed
    assert len(shown["version"]) == 64
    with pytest.raises(openai.NotFoundError):
        ask(server, "refused")


def test_a_cancelled_job_leaves_no_model(server: Server) -> None:
    jobs = server.client.fine_tuning.jobs
    job = create(server, upload(server, PAIRS), epochs=50, suffix="cancelled")
    wait(server, job.id, lambda job: step_of(job) >= 1)
    assert jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(openai.NotFoundError):
        ask(server, "cancelled")
    with pytest.raises(openai.ConflictError, match="is cancelled"):
        jobs.resume(job.id)


@pytest.mark.full
def test_a_job_survives_the_death_of_engine_and_server(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    arguments = ("--device", "cpu", "--kv-cache-memory", "32MiB", "--data-dir", str(tmp_path))
    first = start_server(*arguments)
    job = create(first, upload(first, PAIRS), epochs=50, suffix="survivor")
    wait(first, job.id, lambda job: step_of(job) >= 20)
    first.engine.kill()
    wait(first, job.id, lambda job: step_of(job) >= 60)
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait()
    second = start_server(*arguments)
    done = wait(second, job.id, is_over)
    assert done.status == "succeeded", done.error
    assert ask(second, "survivor") == "Ahoy, matey."
    log = [e.message for e in second.client.fine_tuning.jobs.list_events(job.id, limit=1000)]
    assert sum("goes on from the checkpoint" in text for text in log) == 2
