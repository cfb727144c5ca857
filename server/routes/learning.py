"""``/v1/adapters/{name}/learning``: how an adapter learns from its users, and its runs."""

import asyncio
import hashlib
from functools import partial
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request, Response

from multiflora.engine.errors import RequestRejected
from multiflora.engine.training.jobs.training_jobs import JobOwner
from multiflora.engine.training.learning.error import RunNotFound

from ..access.caller import caller_of
from ..idempotency import adapter_response, once
from ..openapi import body_reference
from ..schemas.body import parse_body
from ..schemas.fine_tuning import job_object
from ..schemas.learning import LearningBody, policy_object, run_object
from ..schemas.page import page_object
from ..service import Service, service_of

router = APIRouter()
Limit = Annotated[int, Query(ge=1, le=1000)]


@router.put("/v1/adapters/{name}/learning", openapi_extra=body_reference(LearningBody))
async def set_learning(request: Request, name: str) -> dict[str, Any]:
    """Say how the adapter learns; what is left out has its default. Opting in begins here."""
    service = service_of(request)
    policy = parse_body(await request.body(), LearningBody).policy()
    with service.drain.running():
        owner = JobOwner(view=caller_of(request).view)
        await service.learner.set_policy(name, policy, owner=owner)
    return await _shown(request, name)


@router.get("/v1/adapters/{name}/learning")
async def show_learning(request: Request, name: str) -> dict[str, Any]:
    """The policy, and how much is kept; an adapter without one keeps nothing."""
    return await _shown(request, name)


@router.get("/v1/adapters/{name}/learning/runs")
async def list_runs(
    request: Request, name: str, limit: Limit = 20, after: str | None = None
) -> dict[str, Any]:
    """Runs with what became of them and every number of the decision, the latest first."""
    service = service_of(request)
    service.registry.entry(name)
    page = partial(service.learner.runs.page, name, after=after, limit=limit)
    try:
        found, has_more = await asyncio.to_thread(page)
    except RunNotFound as error:
        raise RequestRejected(str(error), param="after") from None
    return page_object([run_object(run) for run in found], has_more=has_more)


@router.post("/v1/adapters/{name}/learn")
async def learn(request: Request, name: str) -> Response:
    """Begin a run with all feedback that waits; answers with its fine-tuning job."""
    service = service_of(request)
    fingerprint = hashlib.sha256(await request.body()).hexdigest()
    work = partial(_learn, service, name)
    with service.drain.running():
        return await once(request, service, work, fingerprint=fingerprint, can_repeat=False)


async def _learn(service: Service, name: str, is_repeated: bool) -> Response:
    job = await service.learner.learn(name)
    return adapter_response(orjson.dumps(job_object(job, estimated_finish=None)))


async def _shown(request: Request, name: str) -> dict[str, Any]:
    learner, view = service_of(request).learner, caller_of(request).view
    policy = await learner.policy(name)
    await learner.inbox.flush()
    completions, feedback = await asyncio.to_thread(learner.store.numbers, name, view=view)
    kept = {"kept_completions": completions, "kept_feedback": feedback}
    return {**policy_object(name, policy), **kept}
