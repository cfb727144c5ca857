"""``/v1/datasets/sample``: training files out of a model's own answers that pass."""

import asyncio
from functools import partial
from typing import Any, Final

import orjson
from fastapi import APIRouter, Request, Response

from multiflora.engine.training.sampling.prompt_row import SampledPrompt, read_prompts

from ..access.caller import Caller, caller_of
from ..background_job import BackgroundJob
from ..dataset_sampling import sample_dataset
from ..disconnect import until_disconnect
from ..openapi import body_reference
from ..schemas.body import parse_body
from ..schemas.dataset_sampling import KIND, JudgeBody, SampleBody, sampling_object
from ..service import Service, service_of

router = APIRouter()
_AT_ONCE: Final = 8


@router.post("/v1/datasets/sample", openapi_extra=body_reference(SampleBody))
async def sample(request: Request) -> Response:
    """Sample and grade answers; 202 with a job to look at if in background."""
    service, caller = service_of(request), caller_of(request)
    raw = await request.body()
    body = await service.text_work.run(len(raw), parse_body, raw, SampleBody)
    await asyncio.to_thread(_check, body)
    prompts = await asyncio.to_thread(_prompts, service, caller, body)
    job = BackgroundJob(KIND, body.model, caller.tenant)
    work = partial(sample_dataset, service, caller, body, prompts, job)
    if not body.background:
        with service.drain.running():
            report = await until_disconnect(request, work())
        return Response(orjson.dumps(report), media_type="application/json")
    with service.catalog.lease(body.model, view=caller.view):
        service.background.start(job, work, at_once=_AT_ONCE)
    shown = orjson.dumps(sampling_object(job))
    return Response(shown, status_code=202, media_type="application/json")


@router.get("/v1/datasets/sample/{job_id}")
async def show_sampling(request: Request, job_id: str) -> dict[str, Any]:
    """How far a sampling in background is, and its report."""
    return sampling_object(service_of(request).background.find(job_id, KIND))


@router.post("/v1/datasets/sample/{job_id}/cancel")
async def cancel_sampling(request: Request, job_id: str) -> dict[str, Any]:
    """End a sampling in background; 409 once it has ended or its file is being stored."""
    return sampling_object(service_of(request).background.cancel(job_id, KIND))


def _check(body: SampleBody) -> None:
    body.check()
    if not isinstance(body.grader, JudgeBody):
        body.grader.grader()


def _prompts(service: Service, caller: Caller, body: SampleBody) -> list[SampledPrompt]:
    if body.prompts_file is not None:
        service.files.get(body.prompts_file, view=caller.view)
        with service.files.open(body.prompts_file) as file:
            return read_prompts(file)
    return [
        SampledPrompt(
            one.prompt or [message.for_template() for message in one.messages or ()], one.expected
        )
        for one in body.prompts or ()
    ]
