"""``/v1/batches``: files of requests, answered while nobody else wants the engine."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from multiflora.engine.errors import RequestRejected

from ..access.caller import caller_of
from ..batch_store import BatchStore, UnknownBatch
from ..openapi import body_reference
from ..schemas.batch import BatchBody, batch_object
from ..schemas.body import parse_body
from ..schemas.file import BATCH
from ..schemas.page import page_object
from ..service import service_of

router = APIRouter()


@router.post("/v1/batches", openapi_extra=body_reference(BatchBody))
async def create_batch(request: Request) -> dict[str, Any]:
    """Queue a file; its lines are checked before the first is answered."""
    service, caller = service_of(request), caller_of(request)
    body = parse_body(await request.body(), BatchBody)
    with service.drain.running():
        file = await asyncio.to_thread(service.files.get, body.input_file_id, view=caller.view)
        if file.purpose != BATCH:
            raise RequestRejected(
                f"the file's purpose is {file.purpose}; upload it for {BATCH}",
                param="input_file_id",
            )
        batch = await asyncio.to_thread(
            _store(request).create,
            endpoint=body.endpoint,
            input_file=file.id,
            metadata=body.metadata,
            tenant=caller.tenant,
            key=caller.id,
        )
    service.batches.wake()
    return batch_object(batch, answered=0, failed=0)


@router.get("/v1/batches")
async def list_batches(
    request: Request,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, Any]:
    """The latest first; ``after`` is the last id of a page."""
    store, view = _store(request), caller_of(request).view
    try:
        found, has_more = await asyncio.to_thread(store.page, after=after, limit=limit, view=view)
    except UnknownBatch as error:
        raise RequestRejected(str(error), param="after") from None
    shown = [await _shown(store, batch.id) for batch in found]
    return page_object(shown, has_more=has_more)


@router.get("/v1/batches/{batch_id}")
async def show_batch(request: Request, batch_id: str) -> dict[str, Any]:
    return await _shown(_store(request), batch_id)


@router.post("/v1/batches/{batch_id}/cancel")
async def cancel_batch(request: Request, batch_id: str) -> dict[str, Any]:
    """Answer no more of it; what was answered becomes its output."""
    store = _store(request)
    await asyncio.to_thread(store.cancel, batch_id)
    service_of(request).batches.wake()
    return await _shown(store, batch_id)


async def _shown(store: BatchStore, batch_id: str) -> dict[str, Any]:
    batch = await asyncio.to_thread(store.get, batch_id)
    answered, failed = await asyncio.to_thread(store.counts, batch_id)
    return batch_object(batch, answered=answered, failed=failed)


def _store(request: Request) -> BatchStore:
    return BatchStore(service_of(request).registry.database)
