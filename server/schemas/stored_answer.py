"""What routes about stored things answer with, for the OpenAPI document."""

from typing import Any, Literal

from pydantic import BaseModel, Field


class Canary(BaseModel):
    """A version with a share of the requests."""

    version: str
    weight: float


class Adapter(BaseModel):
    """``state`` is where the weights are; ``problem`` says why it is not served."""

    id: str
    object: Literal["adapter"]
    name: str
    version: str
    state: Literal["disk", "host", "device"]
    bytes: int
    rank: int
    leases: int
    pinned: bool
    canary: Canary | None
    versions: list[str]
    served: bool
    problem: str | None
    created: int
    updated: int


class AdapterVersion(BaseModel):
    """What an adapter can go to at once."""

    id: str
    object: Literal["adapter.version"]
    version: str
    active: bool
    canary: bool
    state: Literal["disk", "host", "device"]
    bytes: int
    rank: int
    leases: int
    source: str
    parents: list[str]
    metrics: dict[str, Any]
    base: str | None
    created: int


class AdapterEvent(BaseModel):
    """Something that happened to a name."""

    id: int
    object: Literal["adapter.event"]
    action: str
    from_: str | None = Field(alias="from")
    to: str | None
    weight: float | None
    evidence: dict[str, Any] | None
    created: int


class BackgroundWork(BaseModel):
    """A merge or a sampling that goes on after its request."""

    id: str
    object: Literal["adapter.merge", "dataset.sampling"]
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    progress: float
    error: dict[str, Any] | None


class SampleReport(BaseModel):
    """What came of sampling; the rows are in ``file``."""

    model: str
    version: str | None
    prompts: int
    answers: int
    passed: int
    rows: int
    file: str | None


class File(BaseModel):
    """A stored file."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"]
    status_details: str | None


class Batch(BaseModel):
    """A file of requests and how far it is."""

    id: str
    object: Literal["batch"]
    endpoint: str
    errors: dict[str, Any] | None
    input_file_id: str
    completion_window: Literal["24h"]
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    request_counts: dict[str, int]
    metadata: dict[str, str]


class FineTuningJob(BaseModel):
    """A training job with OpenAI's fields; ours are further ones."""

    id: str
    object: Literal["fine_tuning.job"]
    created_at: int
    finished_at: int | None
    model: str
    fine_tuned_model: str | None
    organization_id: str
    status: Literal["validating_files", "queued", "running", "succeeded", "failed", "cancelled"]
    training_file: str
    validation_file: str | None
    result_files: list[str]
    hyperparameters: dict[str, Any]
    method: dict[str, Any]
    seed: int
    trained_tokens: int | None
    estimated_finish: int | None
    error: dict[str, Any] | None
    metadata: dict[str, str]


class JobEvent(BaseModel):
    """A line of a job's log."""

    id: str
    object: Literal["fine_tuning.job.event"]
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any] | None


class JobCheckpoint(BaseModel):
    """A checkpoint that is served by name."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"]
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: dict[str, Any]


class Feedback(BaseModel):
    """What a user said about an answer."""

    id: str
    object: Literal["feedback"]
    created_at: int
    completion_id: str
    choice: int
    adapter: str
    version: str
    user: str | None
    kind: Literal["rating", "edit", "preferred"]


class Erasure(BaseModel):
    """How much was erased."""

    object: Literal["feedback.erasure"]
    adapter: str | None
    user: str | None
    deleted_completions: int
    deleted_feedback: int


class Learning(BaseModel):
    """How an adapter learns, and how much is kept."""

    id: str
    object: Literal["adapter.learning"]
    adapter: str
    enabled: bool
    feedback: bool
    method: str
    kept_completions: int
    kept_feedback: int


class LearningRun(BaseModel):
    """One run of an adapter's learning."""

    id: str
    object: Literal["adapter.learning.run"]
    adapter: str
    status: str
    reason: str | None
    rows: int
    job: str | None
    created_at: int


class Key(BaseModel):
    """An API key; ``key`` itself is shown once, to whoever made it."""

    id: str
    object: Literal["api_key"]
    name: str
    scopes: list[str]
    tenant: str
    limits: dict[str, int | None]
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    key: str = ""
