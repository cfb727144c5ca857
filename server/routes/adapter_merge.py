"""``/v1/adapters/merge``: a new adapter out of published ones."""

import hashlib
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from multiflora.engine.errors import RequestRejected

from ..access.caller import Caller, caller_of
from ..access.ownership import owner_of
from ..adapter_change import after_publication
from ..background_job import BackgroundJob
from ..idempotency import adapter_response, once
from ..merging import MergeOrder, Progress
from ..openapi import body_reference
from ..publishing import Terms
from ..schemas.body import parse_body
from ..schemas.merge import MergeBody, merge_object
from ..service import Service, service_of
from .preconditions import if_match_of

router = APIRouter()


@router.post("/v1/adapters/merge", status_code=201, openapi_extra=body_reference(MergeBody))
async def merge_adapters(request: Request) -> Response:
    """Merge ``sources`` and publish the result as ``name``; 202 with a job if in background."""
    service = service_of(request)
    raw = await request.body()
    body = parse_body(raw, MergeBody)
    recipe = body.recipe()
    if_match = if_match_of(request)
    if if_match is not None and not body.replace:
        raise RequestRejected("If-Match needs replace: a new name has no version", param="if-match")
    order = MergeOrder(
        name=body.name,
        sources=(),
        recipe=recipe,
        terms=Terms(
            if_match=if_match,
            is_new=not body.replace,
            tenant=owner_of(caller_of(request), service.registry, body.name),
        ),
    )
    caller = caller_of(request)
    work = partial(_begin if body.background else _answer, service, caller, body, order)
    with service.drain.running():
        return await once(request, service, work, fingerprint=hashlib.sha256(raw).hexdigest())


@router.get("/v1/adapters/merge/{job_id}")
async def show_merge(request: Request, job_id: str) -> dict[str, Any]:
    """How far a merge in background is, and what came of it."""
    return merge_object(service_of(request).background.find(job_id, "merge"))


@router.post("/v1/adapters/merge/{job_id}/cancel")
async def cancel_merge(request: Request, job_id: str) -> dict[str, Any]:
    """End a merge in background; 409 once it has ended or is being published."""
    return merge_object(service_of(request).background.cancel(job_id, "merge"))


async def _answer(
    service: Service, caller: Caller, body: MergeBody, order: MergeOrder, is_repeated: bool
) -> Response:
    with ExitStack() as held:
        order = _prepare(service, caller, body, order, is_repeated, held)
        is_new = order.name not in service.registry
        shown = await _merge(service, order, lambda share: None)
    return adapter_response(orjson.dumps(shown), 201 if is_new or order.terms.is_new else 200)


async def _begin(
    service: Service, caller: Caller, body: MergeBody, order: MergeOrder, is_repeated: bool
) -> Response:
    job = BackgroundJob("merge", body.name, order.terms.tenant or "")
    with ExitStack() as held:
        order = _prepare(service, caller, body, order, is_repeated, held)
        order = replace(order, cancellation=job.cancellation)
        held.enter_context(service.drain.running())
        leases = held.pop_all()

    async def work() -> dict[str, Any]:
        with leases:
            return await _merge(service, order, job.tell)

    service.background.start(job, work)
    return Response(orjson.dumps(merge_object(job)), status_code=202, media_type="application/json")


def _prepare(
    service: Service,
    caller: Caller,
    body: MergeBody,
    order: MergeOrder,
    is_repeated: bool,
    held: ExitStack,
) -> MergeOrder:
    """Everything that can fail at once; the leases are ``held``."""
    terms = replace(order.terms, is_repeated=is_repeated)
    service.merger.check(order.name, terms)
    wanted = [(source.adapter, source.version) for source in body.sources]
    sources = held.enter_context(service.merger.leased(wanted, view=caller.view))
    return replace(order, sources=sources, terms=terms)


async def _merge(service: Service, order: MergeOrder, on_progress: Progress) -> dict[str, Any]:
    answer = await service.merger.merge(order, on_progress)
    shown = await after_publication(service, answer.publication)
    return {**shown, "report": answer.report}
