"""``/v1/adapters``: publish, list, show, download and delete adapters."""

import asyncio
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from multiflora.adapters.error import UnknownName, UnknownVersion
from multiflora.engine.errors import RequestRejected

from ..access.caller import caller_of
from ..access.ownership import owner_of
from ..adapter_change import after_publication
from ..adapter_tar import AdapterTar
from ..adapter_upload import AdapterUpload, receive_adapter
from ..adapter_view import view_adapter, view_adapters, view_versions
from ..idempotency import adapter_response, once
from ..openapi import upload_form
from ..publishing import Terms
from ..removal import remove_adapter
from ..schemas.adapter import event_object
from ..schemas.page import page_object
from ..service import Service, service_of
from .preconditions import if_match_of

router = APIRouter()
Limit = Annotated[int, Query(ge=1, le=1000)]


@router.post("/v1/adapters", status_code=201, openapi_extra=upload_form("name"))
async def create_adapter(request: Request) -> Response:
    """Publish a new adapter from ``config`` and ``weights``, or from ``archive``."""
    service = service_of(request)
    with service.drain.running():
        async with _received(request, service) as upload:
            name = upload.texts.get("name", "")
            if "activate" in upload.texts:
                raise RequestRejected("a new adapter is always activated", param="activate")
            owner = owner_of(caller_of(request), service.registry, name)
            terms = Terms(is_new=True, tenant=owner)
            return await _publish(request, service, upload, name, terms)


@router.put("/v1/adapters/{name}", openapi_extra=upload_form())
async def replace_adapter(request: Request, name: str, activate: str = "true") -> Response:
    """Publish a new version; ``activate=false`` leaves the name where it points."""
    service = service_of(request)
    with service.drain.running():
        async with _received(request, service) as upload:
            if upload.texts.get("name", name) != name:
                raise RequestRejected("name is not the one in the path", param="name")
            terms = Terms(
                if_match=if_match_of(request),
                activate=_flag(upload.texts.get("activate", activate)),
                tenant=owner_of(caller_of(request), service.registry, name),
            )
            return await _publish(request, service, upload, name, terms)


@router.get("/v1/adapters")
async def list_adapters(
    request: Request, limit: Limit = 100, after: str | None = None
) -> dict[str, Any]:
    """All adapters by name, ``limit`` at a time, from the one that follows ``after``."""
    service = service_of(request)
    seen = service.registry.entries(view=caller_of(request).view)
    entries = [entry for entry in seen if after is None or entry.name > after]
    data = await view_adapters(service, entries[:limit])
    return page_object(data, has_more=len(entries) > limit)


@router.get("/v1/adapters/{name}")
async def show_adapter(request: Request, name: str) -> Response:
    service = service_of(request)
    shown = await view_adapter(service, service.registry.entry(name))
    return adapter_response(orjson.dumps(shown))


@router.get("/v1/adapters/{name}/versions")
async def list_versions(
    request: Request, name: str, limit: Limit = 100, after: str | None = None
) -> dict[str, Any]:
    """What the name can go to at once, the version used last first."""
    return _page(await view_versions(service_of(request), name), limit, after)


@router.get("/v1/adapters/{name}/history")
async def list_history(request: Request, name: str, limit: Limit = 100) -> dict[str, Any]:
    """What happened to the name, the latest first; outlives the name."""
    registry = service_of(request).registry
    view = caller_of(request).view
    events = await asyncio.to_thread(registry.history, name, limit=limit + 1, view=view)
    if not events:
        raise UnknownName(name)
    return page_object(
        [event_object(event) for event in events[:limit]], has_more=len(events) > limit
    )


@router.delete("/v1/adapters/{name}")
async def delete_adapter(request: Request, name: str) -> dict[str, Any]:
    """Forget a name: running requests finish, new ones get 404."""
    await remove_adapter(service_of(request), name, if_match=if_match_of(request))
    return {"id": name, "object": "adapter.deleted", "name": name, "deleted": True}


@router.get("/v1/adapters/{name}/download")
async def download_adapter(request: Request, name: str, version: str | None = None) -> Response:
    """A tar of the version's PEFT folder; the active version if none is named."""
    service = service_of(request)
    entry = service.registry.entry(name)
    digest = version or entry.digest
    if digest not in entry.kept:
        raise UnknownVersion(f"{name!r} does not keep version {digest[:64]!r}")
    tar = await asyncio.to_thread(_open_tar, service, name, digest)
    headers = {
        "content-length": str(tar.num_bytes),
        "content-disposition": f'attachment; filename="{name}-{digest[:12]}.tar"',
        "x-adapter-id": name,
        "x-adapter-version": digest,
    }
    return StreamingResponse(tar.chunks(), headers=headers, media_type="application/x-tar")


def _open_tar(service: Service, name: str, digest: str) -> AdapterTar:
    store = service.registry.store
    assert store is not None
    created = service.registry.version(digest).created
    return AdapterTar.open(store.open(digest), name=name, created=created)


def _received(request: Request, service: Service) -> Any:
    store = service.registry.store
    assert store is not None
    return receive_adapter(request, store, idle_seconds=service.limits.upload_idle_seconds)


async def _publish(
    request: Request, service: Service, upload: AdapterUpload, name: str, terms: Terms
) -> Response:
    work = partial(_publish_upload, service, upload, name, terms)
    return await once(request, service, work, fingerprint=upload.fingerprint)


async def _publish_upload(
    service: Service, upload: AdapterUpload, name: str, terms: Terms, is_repeated: bool
) -> Response:
    is_new = name not in service.registry
    if terms.is_new:
        terms = replace(terms, is_repeated=is_repeated)
    publish = partial(service.publisher.publish, upload.source, name, source="upload", terms=terms)
    taken = await service.publisher.run(publish)
    shown = await after_publication(service, taken)
    return adapter_response(orjson.dumps(shown), 201 if is_new or terms.is_new else 200)


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise RequestRejected(f"activate is {text[:20]!r}; it is true or false", param="activate")
    return text.lower() in ("true", "1")


def _page(data: list[dict[str, Any]], limit: int, after: str | None) -> dict[str, Any]:
    ids = [item["id"] for item in data]
    if after is not None:
        if after not in ids:
            raise UnknownVersion(f"after is {after[:64]!r}, which is not in the list")
        data = data[ids.index(after) + 1 :]
    return page_object(data[:limit], has_more=len(data) > limit)
