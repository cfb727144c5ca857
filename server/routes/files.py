"""``/v1/files``: upload, list, show, download and delete files, as OpenAI's API does."""

import asyncio
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any, BinaryIO, Final, Literal

import orjson
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from multiflora.engine.errors import RequestRejected
from multiflora.engine.training.data.file_registry import StoredFile, UnknownFile

from ..access.caller import Caller, Scope, caller_of
from ..access.error import MissingScope
from ..idempotency import adapter_response, once
from ..openapi import file_form
from ..schemas.file import BATCH, BATCH_PURPOSES, file_name, file_object, file_terms
from ..schemas.page import page_object
from ..service import Service, service_of
from ..uploads import ANY_SIZE, FormField, FormFields, MalformedUpload, Upload, receive_upload

router = APIRouter()
Limit = Annotated[int, Query(ge=1, le=10_000)]
_CHUNK_BYTES: Final = 1 << 18
_FORM: Final[FormFields] = {
    "purpose": FormField(),
    "expires_after[anchor]": FormField(),
    "expires_after[seconds]": FormField(),
    "file": FormField(file="file", max_bytes=ANY_SIZE),
}


@router.post("/v1/files", openapi_extra=file_form())
async def create_file(request: Request) -> Response:
    """Store a file; one for fine-tuning is checked in the background."""
    service = service_of(request)
    idle_seconds = service.limits.upload_idle_seconds
    with service.drain.running():
        async with receive_upload(
            request, service.files.staging, _FORM, idle_seconds=idle_seconds
        ) as upload:
            work = partial(_create, service, upload, caller_of(request))
            return await once(request, service, work, fingerprint=upload.fingerprint)


@router.get("/v1/files")
async def list_files(
    request: Request,
    purpose: str | None = None,
    after: str | None = None,
    limit: Limit = 10_000,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    """Files by the time of their upload, the latest first; ``after`` is the last id of a page."""
    files, caller = service_of(request).files, caller_of(request)
    wanted = None if purpose is None else {purpose}
    if not caller.has(Scope.TRAINING):
        wanted = BATCH_PURPOSES if wanted is None else BATCH_PURPOSES & wanted
    try:
        found, has_more = await asyncio.to_thread(
            files.page, purposes=wanted, after=after, limit=limit, order=order, view=caller.view
        )
    except UnknownFile as error:
        raise RequestRejected(str(error), param="after") from None
    return page_object([file_object(file) for file in found], has_more=has_more)


@router.get("/v1/files/{file_id}")
async def show_file(request: Request, file_id: str) -> dict[str, Any]:
    return file_object(await asyncio.to_thread(service_of(request).files.get, file_id))


@router.get("/v1/files/{file_id}/content")
async def download_file(request: Request, file_id: str) -> Response:
    """The bytes as they were uploaded; a file that is deleted meanwhile is still sent whole."""
    files = service_of(request).files
    stored = await asyncio.to_thread(files.get, file_id)
    content = await asyncio.to_thread(files.open, file_id)
    headers = {"content-length": str(stored.num_bytes), "content-disposition": "attachment"}
    return StreamingResponse(
        _chunks(content), headers=headers, media_type="application/octet-stream"
    )


@router.delete("/v1/files/{file_id}")
async def delete_file(request: Request, file_id: str) -> dict[str, Any]:
    """Forget a file; 409 while a job needs it."""
    service = service_of(request)
    with service.drain.running():
        await asyncio.to_thread(service.files.delete, file_id)
    return {"id": file_id, "object": "file", "deleted": True}


async def _create(service: Service, upload: Upload, caller: Caller, is_repeated: bool) -> Response:
    stored = await asyncio.to_thread(_store, service, upload, caller)
    if stored.status == "uploaded":
        service.file_checker.submit(stored.id)
    return adapter_response(orjson.dumps(file_object(stored)))


def _store(service: Service, upload: Upload, caller: Caller) -> StoredFile:
    terms = file_terms(upload.texts)
    if terms.purpose not in BATCH_PURPOSES and not caller.has(Scope.TRAINING):
        raise MissingScope(
            f"the API key lacks the scope {Scope.TRAINING.value!r} for files for {terms.purpose}"
        )
    if "file" not in upload.files:
        raise MalformedUpload("send the file in the field file", param="file")
    received = upload.files["file"]
    service.files.sweep()
    return service.files.add(
        received.path,
        filename=file_name(received.filename),
        purpose=terms.purpose,
        expires_after=terms.expires_after,
        tenant=caller.tenant,
        # A batch is checked when it is made.
        status="processed" if terms.purpose == BATCH else "uploaded",
    )


def _chunks(content: BinaryIO) -> Iterator[bytes]:
    with content:
        while chunk := content.read(_CHUNK_BYTES):
            yield chunk
