"""Real rows from a file to a model that answers, with the unmodified openai client.

``GSM8K_DATA`` names ``train.jsonl`` of openai/grade-school-math, or a folder with it.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from .conftest import Server
from .test_fine_tuning import MODEL, ask, is_over, wait

VARIABLE: Final = "GSM8K_DATA"
NUM_ROWS, NUM_HELD_OUT = 48, 8

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    place = os.environ.get(VARIABLE)
    if place is None:
        pytest.skip(f"{VARIABLE} is not set")
    path = Path(place)
    path = path / "train.jsonl" if path.is_dir() else path
    with path.open(encoding="utf-8") as file:
        return [json.loads(next(file)) for _ in range(NUM_ROWS + NUM_HELD_OUT)]


def to_upload(rows: list[dict[str, str]]) -> bytes:
    """As prompt and completion; the answers keep their calculations and ``#### NUMBER``."""
    shaped = ({"prompt": row["question"], "completion": row["answer"]} for row in rows)
    return "\n".join(map(json.dumps, shaped)).encode()


def test_grade_school_maths_goes_from_a_file_to_a_chat(
    start_server: Callable[..., Server], rows: list[dict[str, str]]
) -> None:
    server = start_server("--device", "cpu", "--kv-cache-memory", "32MiB")
    files, jobs = server.client.files, server.client.fine_tuning.jobs
    parts = {"train": rows[:NUM_ROWS], "held-out": rows[NUM_ROWS:]}
    training, validation = (
        files.create(file=(f"{name}.jsonl", to_upload(part)), purpose="fine-tune")
        for name, part in parts.items()
    )
    given = {"n_epochs": 1, "batch_size": 8}
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": given}}
    job = jobs.create(
        model=MODEL,
        training_file=training.id,
        validation_file=validation.id,
        suffix="gsm8k",
        seed=1,
        method=method,
        extra_body={
            "training": {
                "optimizer": {"learning_rate": 2e-3},
                "evaluation": {"every_steps": 2},
                "gate": {"num_prompts": 0},
            }
        },
    )
    done = wait(server, job.id, is_over, seconds=280)
    assert done.status == "succeeded", done.error
    assert files.retrieve(training.id).status == "processed"
    log = list(jobs.list_events(job.id, limit=100))
    assert any(f"Files validated: {NUM_ROWS} rows" in event.message for event in log)
    data: list[Any] = [event.data for event in log if event.type == "metrics"]
    losses = [row["valid_loss"] for row in data if "valid_loss" in row]
    assert len(losses) == 3
    assert losses[0] < losses[-1], "the latest event comes first, and the loss falls"
    assert ask(server, "gsm8k", rows[-1]["question"])
