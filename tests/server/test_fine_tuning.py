"""What the fine-tuning routes refuse, and the shape of what they say."""

from typing import Any

import httpx
import pytest
from openai.types.fine_tuning import FineTuningJob

from multiflora.engine.training.jobs.job import JobNote, JobWish, WandbRun
from multiflora.engine.training.jobs.training_jobs import TrainingJobs

pytestmark = pytest.mark.anyio
JOBS = "/v1/fine_tuning/jobs"
WANDB = {"type": "wandb", "wandb": {"project": "ships", "tags": ["a"]}}


def make_row(jobs: TrainingJobs, **wish: Any) -> str:
    """A job that was acknowledged and does not run."""
    asked = JobWish(**{"model": "base", "training_file": "file-1", **wish})
    return jobs.rows.create(asked, name=lambda job_id: "fancy", start=None, notes=["made"]).id


async def create(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    body = {"model": "base", "training_file": "file-0", **fields}
    answer = await client.post(JOBS, json=body)
    assert answer.status_code in (400, 404)
    return answer.json()["error"]


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({}, "training_file", "no file has the id"),
        ({"model": "nobody"}, "model", "does not exist"),
        ({"sufix": "x"}, "sufix", "did you mean 'suffix'"),
        ({"training": {"lorra": {}}}, "training_file", "no file has the id"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"integrations": [{"type": "wandb"}]}, "integrations.0.wandb", "required"),
        ({"integrations": [WANDB, WANDB]}, "integrations", "at most 1"),
        ({"training": {"report_to": "mlflow"}}, "training.report_to", "'mlflow' is none of"),
        ({"training": {"report_to": {"a": 1}}}, "training.report_to", "a list of names"),
        ({"training": {"lora": 8}}, "training.lora", "an object of settings"),
        ({"hyperparameters": {"n_epoch": 1}}, "hyperparameters.n_epoch", "'n_epochs'"),
        ({"hyperparameters": {"n_epochs": 99}}, "hyperparameters", "between 1 and 50"),
        ({"hyperparameters": {"beta": 0.1}}, "hyperparameters.beta", "no setting 'beta'"),
        ({"method": {"type": "supervised", "dpo": {}}}, "method", "leave dpo out"),
        ({"metadata": {"a" * 65: "b"}}, None, "64"),
    ],
)
async def test_what_cannot_become_a_job_is_refused(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str | None, message: str
) -> None:
    error = await create(client, **fields)
    assert message in error["message"]
    assert param is None or error["param"] == param
    assert (await client.get(JOBS)).json()["data"] == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"integrations": [WANDB]}, "integrations"),
        ({"training": {"report_to": ["wandb"]}}, "training.report_to"),
    ],
)
async def test_a_sink_that_the_server_does_not_allow_is_refused(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    error = await create(client, **fields)
    assert (error["code"], error["param"]) == ("tracking_unavailable", param)
    assert "--tracking wandb" in error["message"]


async def test_integrations_are_shown_as_openai_shows_them(
    client: httpx.AsyncClient, jobs: TrainingJobs
) -> None:
    job_id = make_row(jobs, wandb=WandbRun(project="ships", tags=("a",)), report_to=("wandb",))
    shown = FineTuningJob.model_validate((await client.get(f"{JOBS}/{job_id}")).json())
    assert shown.integrations is not None
    assert shown.integrations[0].wandb.project == "ships"
    assert shown.integrations[0].wandb.tags == ["a"]
    assert (shown.model_extra or {})["training"]["report_to"] == ["wandb"]


@pytest.mark.parametrize("path", ["", "/events", "/checkpoints", "/plot.png"])
async def test_an_unknown_job_is_not_found(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(f"{JOBS}/ftjob-0{path}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "job_not_found"


async def test_jobs_come_in_pages_and_by_metadata(
    client: httpx.AsyncClient, jobs: TrainingJobs
) -> None:
    made = [make_row(jobs, metadata={"team": team}) for team in ("a", "b", "a")]
    first = (await client.get(JOBS, params={"limit": 2})).json()
    assert [job["id"] for job in first["data"]] == [made[2], made[1]]
    assert first["has_more"]
    rest = (await client.get(JOBS, params={"after": first["last_id"]})).json()
    assert [job["id"] for job in rest["data"]] == [made[0]]
    assert not rest["has_more"]
    found = (await client.get(JOBS, params={"metadata[team]": "b"})).json()
    assert [job["id"] for job in found["data"]] == [made[1]]
    lost = await client.get(JOBS, params={"after": "ftjob-0"})
    assert (lost.status_code, lost.json()["error"]["param"]) == (400, "after")


async def test_the_log_comes_in_pages(client: httpx.AsyncClient, jobs: TrainingJobs) -> None:
    job_id = make_row(jobs)
    jobs.rows.note(job_id, [JobNote(message=str(number)) for number in range(3)])
    first = (await client.get(f"{JOBS}/{job_id}/events", params={"limit": 3})).json()
    assert [event["message"] for event in first["data"]] == ["2", "1", "0"]
    rest = await client.get(f"{JOBS}/{job_id}/events", params={"after": first["last_id"]})
    assert [event["message"] for event in rest.json()["data"]] == ["made"]


async def test_a_pause_shows_and_a_cancelled_job_takes_no_orders(
    client: httpx.AsyncClient, jobs: TrainingJobs
) -> None:
    job_id = make_row(jobs)
    paused = (await client.post(f"{JOBS}/{job_id}/pause")).json()
    assert (paused["status"], paused["paused"]) == ("validating_files", True)
    assert (await client.delete(f"{JOBS}/{job_id}")).status_code == 409
    assert (await client.post(f"{JOBS}/{job_id}/cancel")).json()["status"] == "cancelled"
    again = await client.post(f"{JOBS}/{job_id}/cancel")
    assert again.status_code == 409
    assert again.headers["x-should-retry"] == "false"
    assert (await client.delete(f"{JOBS}/{job_id}")).json()["deleted"]
    assert (await client.get(f"{JOBS}/{job_id}")).status_code == 404
