"""``/v1/fine_tuning/jobs``: what a body asks for, and jobs, events and checkpoints as objects."""

from dataclasses import asdict
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from multiflora.engine.errors import RequestRejected
from multiflora.engine.training.data.config import Method
from multiflora.engine.training.jobs.job import (
    Hyperparameters,
    Job,
    JobCheckpoint,
    JobWish,
    StoredNote,
    WandbRun,
)
from multiflora.engine.training.jobs.settings import read_hyperparameters
from multiflora.engine.training.jobs.tracking.availability import read_sinks
from multiflora.engine.training.jobs.tracking.message import SinkName

from .body import RequestBody

_NAMES: Final = ("n_epochs", "batch_size", "learning_rate_multiplier", "beta")
_REPORT_TO: Final = "report_to"
_MAX_SEED: Final = (1 << 31) - 1
MetadataKey = Annotated[str, Field(min_length=1, max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


class _Choices(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    hyperparameters: dict[str, Any] | None = None


class MethodBody(BaseModel):
    """Only the settings of the named type may be given."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    type: Method
    supervised: _Choices | None = None
    dpo: _Choices | None = None
    kto: _Choices | None = None


class WandbBody(BaseModel):
    """OpenAI's fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    project: str = Field(min_length=1, max_length=128)
    name: str | None = Field(None, min_length=1, max_length=128)
    entity: str | None = Field(None, min_length=1, max_length=128)
    tags: list[Annotated[str, Field(min_length=1, max_length=64)]] | None = Field(
        None, max_length=32
    )


class IntegrationBody(BaseModel):
    """One of OpenAI's integrations; it has this one only."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    type: Literal["wandb"]
    wandb: WandbBody


class JobBody(RequestBody):
    """``training`` has ``report_to`` and sections of our own: see docs/training.md."""

    model: str = Field(max_length=200)
    training_file: str = Field(max_length=100)
    validation_file: str | None = Field(None, max_length=100)
    suffix: str | None = Field(None, min_length=1, max_length=64)
    seed: int | None = Field(None, ge=0, le=_MAX_SEED)
    method: MethodBody | None = None
    hyperparameters: dict[str, Any] | None = None
    integrations: list[IntegrationBody] | None = Field(None, max_length=1)
    training: dict[str, Any] = Field(default_factory=dict)
    metadata: dict[MetadataKey, MetadataValue] = Field(default_factory=dict, max_length=16)

    def wish(self, *, seed: int) -> JobWish:
        """``seed`` where none was given. Raises ``RequestRejected``."""
        method = self.method.type if self.method else "supervised"
        return JobWish(
            model=self.model,
            training_file=self.training_file,
            validation_file=self.validation_file,
            suffix=self.suffix,
            seed=seed if self.seed is None else self.seed,
            method=method,
            hyperparameters=self._hyperparameters(),
            training=self._sections(),
            metadata=self.metadata,
            report_to=self._report_to(),
            wandb=self._wandb(),
        )

    def _sections(self) -> dict[str, dict[str, Any]]:
        sections = {name: value for name, value in self.training.items() if name != _REPORT_TO}
        for name, value in sections.items():
            if not isinstance(value, dict):
                place = f"training.{name[:64]}"
                raise RequestRejected(f"{place} is an object of settings", param=place)
        return sections

    def _report_to(self) -> tuple[SinkName, ...]:
        param = f"training.{_REPORT_TO}"
        try:
            sinks = read_sinks(self.training.get(_REPORT_TO, []))
        except ValueError as error:
            raise RequestRejected(f"{param}: {error}", param=param) from None
        return (*sinks, "wandb") if self.integrations and "wandb" not in sinks else sinks

    def _wandb(self) -> WandbRun | None:
        if not self.integrations:
            return None
        wanted = self.integrations[0].wandb
        return WandbRun(
            project=wanted.project,
            name=wanted.name,
            entity=wanted.entity,
            tags=tuple(wanted.tags or ()),
        )

    def _hyperparameters(self) -> Hyperparameters:
        if self.method is None:
            return read_hyperparameters(self.hyperparameters or {}, "hyperparameters")
        kind = self.method.type
        for other in get_args(Method):
            if other != kind and getattr(self.method, other) is not None:
                raise RequestRejected(f"method.type is {kind}; leave {other} out", param="method")
        if self.hyperparameters:
            raise RequestRejected(
                "hyperparameters is the older place; with method, give them there",
                param="hyperparameters",
            )
        chosen: _Choices | None = getattr(self.method, kind)
        given = (chosen.hyperparameters if chosen else None) or {}
        return read_hyperparameters(
            given, f"method.{kind}.hyperparameters", has_beta=kind != "supervised"
        )


def job_object(job: Job, *, estimated_finish: int | None) -> dict[str, Any]:
    """OpenAI's fields, then ours, from ``training`` on."""
    wish, values = job.wish, _hyperparameters(job)
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": job.created,
        "finished_at": job.finished,
        "model": wish.model,
        "fine_tuned_model": job.name if job.status == "succeeded" else None,
        "organization_id": "multiflora",
        "status": job.status,
        "training_file": wish.training_file,
        "validation_file": wish.validation_file,
        "result_files": [],
        "hyperparameters": {name: value for name, value in values.items() if name != "beta"},
        "method": {"type": wish.method, wish.method: {"hyperparameters": values}},
        "seed": wish.seed,
        "trained_tokens": job.trained_tokens if job.is_over else None,
        "estimated_finish": estimated_finish,
        "error": _error(job),
        "integrations": _integrations(wish),
        "metadata": dict(wish.metadata),
        "training": _training(job),
        "name": job.name,
        "paused": job.is_paused,
        "step": job.step,
        "total_steps": job.num_steps,
        "started_at": job.started,
        "start_version": job.start,
        "version": job.digest,
        "gate": None if job.verdict is None else dict(job.verdict),
    }


def event_object(stored: StoredNote) -> dict[str, Any]:
    note = stored.note
    return {
        "id": stored.id,
        "object": "fine_tuning.job.event",
        "created_at": stored.created,
        "level": note.level,
        "message": note.message,
        "type": note.kind,
        "data": None if note.data is None else dict(note.data),
    }


def checkpoint_object(checkpoint: JobCheckpoint) -> dict[str, Any]:
    return {
        "id": checkpoint.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": checkpoint.created,
        "fine_tuned_model_checkpoint": checkpoint.name,
        "fine_tuning_job_id": checkpoint.job,
        "step_number": checkpoint.step,
        "metrics": dict(checkpoint.metrics),
    }


def _hyperparameters(job: Job) -> dict[str, Any]:
    """What was asked for; ``auto`` until its value is known."""
    names = _NAMES[:3] if job.wish.method == "supervised" else _NAMES
    values = {name: getattr(job.wish.hyperparameters, name) for name in names}
    if job.settings is not None:
        known = {
            "n_epochs": job.settings["batch"]["num_epochs"],
            "batch_size": job.settings["batch"]["batch_size"],
            "learning_rate_multiplier": 1.0,
            "beta": job.settings["method"].get("beta"),
        }
        values = {name: known[name] if value is None else value for name, value in values.items()}
    return {name: "auto" if value is None else value for name, value in values.items()}


def _training(job: Job) -> dict[str, Any]:
    """As it was given, until all of it is known."""
    given: dict[str, Any] = {name: dict(values) for name, values in job.wish.training.items()}
    if job.wish.report_to:
        given[_REPORT_TO] = list(job.wish.report_to)
    if job.settings is None:
        return given
    known = {name: value for name, value in job.settings.items() if isinstance(value, dict)}
    known["loss"] = {key: value for key, value in known.pop("method").items() if key != "kind"}
    ours = ("data", "gate", "publish", _REPORT_TO)
    return {**known, **{name: given[name] for name in ours if name in given}}


def _integrations(wish: JobWish) -> list[dict[str, Any]]:
    return [] if wish.wandb is None else [{"type": "wandb", "wandb": asdict(wish.wandb)}]


def _error(job: Job) -> dict[str, Any] | None:
    if job.error is None:
        return None
    return {"code": job.error.code, "message": job.error.message, "param": job.error.param}
