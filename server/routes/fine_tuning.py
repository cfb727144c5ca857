"""``/v1/fine_tuning/jobs``: OpenAI's fine-tuning API, and what it lacks: delete and a picture."""

import asyncio
import hashlib
import re
import secrets
from functools import partial
from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, Query, Request, Response

from multiflora.adapters.error import ForeignName
from multiflora.engine.errors import RequestRejected
from multiflora.engine.training.jobs.curve import draw_losses
from multiflora.engine.training.jobs.error import JobNotFound
from multiflora.engine.training.jobs.job import Job
from multiflora.engine.training.jobs.training_jobs import JobOwner

from ..access.caller import Caller, caller_of
from ..access.ownership import owner_of
from ..idempotency import adapter_response, once
from ..openapi import body_reference
from ..schemas.body import parse_body
from ..schemas.fine_tuning import JobBody, checkpoint_object, event_object, job_object
from ..schemas.page import page_object
from ..service import Service, service_of

router = APIRouter()
Limit = Annotated[int, Query(ge=1, le=1000)]
_JOBS: Final = "/v1/fine_tuning/jobs"
_METADATA: Final = re.compile(r"metadata\[(.{1,64})\]")


@router.post(_JOBS, openapi_extra=body_reference(JobBody))
async def create_job(request: Request) -> Response:
    """Train an adapter on an uploaded file; what can be wrong with the request is wrong now."""
    service = service_of(request)
    raw = await request.body()
    work = partial(_create, service, caller_of(request), parse_body(raw, JobBody))
    fingerprint = hashlib.sha256(raw).hexdigest()
    with service.drain.running():
        return await once(request, service, work, fingerprint=fingerprint, can_repeat=False)


@router.get(_JOBS)
async def list_jobs(request: Request, limit: Limit = 20, after: str | None = None) -> Any:
    """Jobs, the latest first; ``metadata[KEY]=VALUE`` filters."""
    service = service_of(request)
    metadata = {
        found.group(1): value
        for name, value in request.query_params.items()
        if (found := _METADATA.fullmatch(name))
    }
    view = caller_of(request).view
    page = partial(service.jobs.rows.page, after=after, limit=limit, metadata=metadata, view=view)
    found, has_more = await _page(page, after)
    return page_object([_shown(service, job) for job in found], has_more=has_more)


@router.get(f"{_JOBS}/{{job_id}}")
async def show_job(request: Request, job_id: str) -> dict[str, Any]:
    service = service_of(request)
    return _shown(service, await asyncio.to_thread(service.jobs.rows.get, job_id))


@router.post(f"{_JOBS}/{{job_id}}/cancel")
async def cancel_job(request: Request, job_id: str) -> dict[str, Any]:
    """End the job; its checkpoints stay. 409 if it has ended."""
    service = service_of(request)
    return _shown(service, await service.jobs.cancel(job_id))


@router.post(f"{_JOBS}/{{job_id}}/pause")
async def pause_job(request: Request, job_id: str) -> dict[str, Any]:
    """Let others have the device; ``paused`` and an event say so, the status has no word for it."""
    service = service_of(request)
    return _shown(service, await service.jobs.pause(job_id))


@router.post(f"{_JOBS}/{{job_id}}/resume")
async def resume_job(request: Request, job_id: str) -> dict[str, Any]:
    service = service_of(request)
    return _shown(service, await service.jobs.resume(job_id))


@router.delete(f"{_JOBS}/{{job_id}}")
async def delete_job(request: Request, job_id: str) -> dict[str, Any]:
    """Forget a job that has ended, with its checkpoints; the adapter that it made stays."""
    await service_of(request).jobs.delete(job_id)
    return {"id": job_id, "object": "fine_tuning.job", "deleted": True}


@router.get(f"{_JOBS}/{{job_id}}/events")
async def list_events(
    request: Request, job_id: str, limit: Limit = 20, after: str | None = None
) -> Any:
    """The job's log, the latest first."""
    rows = service_of(request).jobs.rows
    found, has_more = await _page(partial(rows.notes, job_id, after=after, limit=limit), after)
    return page_object([event_object(note) for note in found], has_more=has_more)


@router.get(f"{_JOBS}/{{job_id}}/checkpoints")
async def list_checkpoints(
    request: Request, job_id: str, limit: Limit = 10, after: str | None = None
) -> Any:
    """Checkpoints that are served by name, the latest first."""
    rows = service_of(request).jobs.rows
    page = partial(rows.checkpoints, job_id, after=after, limit=limit)
    found, has_more = await _page(page, after)
    return page_object([checkpoint_object(checkpoint) for checkpoint in found], has_more=has_more)


@router.get(f"{_JOBS}/{{job_id}}/plot.png")
async def plot_job(request: Request, job_id: str) -> Response:
    """The losses so far as a picture."""
    picture = await asyncio.to_thread(_draw, service_of(request), job_id)
    return Response(picture, media_type="image/png")


def _draw(service: Service, job_id: str) -> bytes:
    job = service.jobs.rows.get(job_id)
    return draw_losses(service.jobs.rows.metrics(job_id), title=f"{job.name} ({job.status})")


async def _create(service: Service, caller: Caller, body: JobBody, is_repeated: bool) -> Response:
    wish = body.wish(seed=secrets.randbelow(1 << 31))
    with service.catalog.lease(body.model, view=caller.view) as model:
        start = model.digests[0] if model.digests else None
        owner = JobOwner(_tenant(service, caller, wish.suffix), caller.view)
        job = await service.jobs.create(wish, start=start, owner=owner)
    return adapter_response(orjson.dumps(_shown(service, job)))


def _tenant(service: Service, caller: Caller, suffix: str | None) -> str:
    """Raises ``ForeignName`` for a name that the result could not have."""
    if suffix is None:
        return caller.tenant
    tenant = owner_of(caller, service.registry, suffix)
    if suffix in service.registry and service.registry.entry(suffix).tenant != tenant:
        raise ForeignName(suffix)
    return tenant


def _shown(service: Service, job: Job) -> dict[str, Any]:
    return job_object(job, estimated_finish=service.jobs.estimated_finish(job.id))


async def _page(page: Any, after: str | None) -> Any:
    try:
        return await asyncio.to_thread(page)
    except JobNotFound as error:
        if after is None or after not in str(error):
            raise
        raise RequestRejected(
            f"after is {after[:64]!r}, which is not in the list", param="after"
        ) from None
