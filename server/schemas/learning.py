"""``/v1/adapters/{name}/learning``: the policy as it is given and shown, and runs as objects."""

from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, ConfigDict

from multiflora.engine.errors import RequestRejected
from multiflora.engine.training.data.config import Method
from multiflora.engine.training.learning.policy import CanaryPolicy, LearningPolicy
from multiflora.engine.training.learning.run import LearningRun

from .body import RequestBody


class CanaryPolicyBody(BaseModel):
    """Settings as ``CanaryPolicy`` has them."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    min_requests: int | None = None
    max_error_increase: float | None = None
    max_dislike_increase: float | None = None
    length_factor: float | None = None
    latency_factor: float | None = None
    max_seconds: int | None = None
    confidence: float | None = None


class LearningBody(RequestBody):
    """Settings as ``LearningPolicy`` has them; what is left out has its default."""

    enabled: bool | None = None
    feedback: bool | None = None
    method: Method | None = None
    min_rows: int | None = None
    max_age_s: int | None = None
    replay: dict[str, Any] | None = None
    gate: dict[str, Any] | None = None
    training: dict[str, dict[str, Any]] | None = None
    hyperparameters: dict[str, Any] | None = None
    validation_file: str | None = None
    hold_out: float | None = None
    seed: int | None = None
    canary_weight: float | None = None
    canary: CanaryPolicyBody | None = None
    keep_completions: int | None = None
    keep_seconds: int | None = None

    def policy(self) -> LearningPolicy:
        """Raises ``RequestRejected``."""
        given = self.model_dump(exclude_none=True)
        canary = given.pop("canary", {})
        return _made(LearningPolicy, canary=_made(CanaryPolicy, **canary), **given)


def policy_object(name: str, policy: LearningPolicy) -> dict[str, Any]:
    return {"id": name, "object": "adapter.learning", "adapter": name, **asdict(policy)}


def run_object(run: LearningRun) -> dict[str, Any]:
    """``traffic`` is what was counted of both versions, ``verdict`` the last decision's numbers."""
    return {
        "id": run.id,
        "object": "adapter.learning.run",
        "adapter": run.adapter,
        "status": run.status,
        "reason": run.reason,
        "rows": run.num_rows,
        "job": run.job,
        "start_version": run.start,
        "version": run.digest,
        "traffic": asdict(run.traffic) if run.watched is not None else None,
        "verdict": None if run.verdict is None else dict(run.verdict),
        "created_at": run.created,
        "canary_at": run.watched,
        "finished_at": run.finished,
    }


def _made(kind: Any, **given: Any) -> Any:
    try:
        return kind(**given)
    except ValueError as error:
        raise RequestRejected(str(error), param=str(error).partition(" ")[0]) from None
