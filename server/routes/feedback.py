"""``/v1/feedback``: what users say about answers, shown, exported and erased."""

import asyncio
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from multiflora.adapters.error import UnknownName
from multiflora.engine.errors import RequestRejected
from multiflora.engine.training.feedback.error import FeedbackNotFound
from multiflora.engine.training.feedback.training_row import KINDS, RowKind, as_jsonl, rows_of

from ..access.caller import caller_of
from ..openapi import body_reference
from ..schemas.body import parse_body
from ..schemas.feedback import FeedbackBody, feedback_object
from ..schemas.page import page_object
from ..service import service_of

router = APIRouter()
Limit = Annotated[int, Query(ge=1, le=1000)]
Name = Annotated[str | None, Query(min_length=1, max_length=1024)]


@router.post("/v1/feedback", openapi_extra=body_reference(FeedbackBody))
async def create_feedback(request: Request) -> dict[str, Any]:
    """Say what an answer was worth, or what it should have been; the last word counts."""
    service = service_of(request)
    body = parse_body(await request.body(), FeedbackBody)
    with service.drain.running():
        await service.learner.inbox.flush()
        view = caller_of(request).view
        add = partial(service.learner.store.add, choice=body.choice, view=view)
        feedback = await asyncio.to_thread(add, body.completion_id, body.kind, body.value)
    service.metrics.feedback(feedback.completion.adapter, feedback.kind)
    return feedback_object(feedback)


@router.get("/v1/feedback")
async def list_feedback(
    request: Request, adapter: Name = None, limit: Limit = 20, after: str | None = None
) -> dict[str, Any]:
    """Feedback with its answers, the latest first; a tenant's on its own answers."""
    store, view = service_of(request).learner.store, caller_of(request).view
    page = partial(store.page, adapter=adapter, after=after, limit=limit, view=view)
    try:
        found, has_more = await asyncio.to_thread(page)
    except FeedbackNotFound as error:
        raise RequestRejected(str(error), param="after") from None
    return page_object([feedback_object(one) for one in found], has_more=has_more)


@router.get("/v1/feedback/export")
async def export_feedback(request: Request, adapter: str, kind: RowKind = "sft") -> Response:
    """All feedback on an adapter as a training file: JSON lines."""
    service, view = service_of(request), caller_of(request).view
    if not service.registry.entry(adapter).is_seen_by(view):
        raise UnknownName(adapter)
    store = service.learner.store
    feedback = await asyncio.to_thread(store.of_adapter, adapter, KINDS[kind], view=view)
    rows = await asyncio.to_thread(rows_of, feedback, kind, store.answers)
    headers = {"content-disposition": f'attachment; filename="{kind}.jsonl"'}
    return StreamingResponse(as_jsonl(rows), headers=headers, media_type="application/jsonl")


@router.delete("/v1/feedback/{feedback_id}")
async def delete_feedback(request: Request, feedback_id: str) -> dict[str, Any]:
    """Erase one piece of feedback, and the answer that it was about."""
    service = service_of(request)
    with service.drain.running():
        await service.learner.delete(feedback_id, view=caller_of(request).view)
    return {"id": feedback_id, "object": "feedback", "deleted": True}


@router.delete("/v1/feedback")
async def erase_feedback(
    request: Request, adapter: Name = None, user: Name = None
) -> dict[str, Any]:
    """Erase all kept answers and feedback of an adapter, a user, or a user of an adapter."""
    if adapter is None and user is None:
        raise RequestRejected("say whose: adapter, user, or both", param="adapter")
    service = service_of(request)
    with service.drain.running():
        completions, feedback = await service.learner.erase(
            adapter=adapter, user=user, view=caller_of(request).view
        )
    return {
        "object": "feedback.erasure",
        "adapter": adapter,
        "user": user,
        "deleted_completions": completions,
        "deleted_feedback": feedback,
    }
