"""``POST /v1/adapters/{name}/import``: an adapter that the server itself fetches."""

import hashlib
from functools import partial

import orjson
from fastapi import APIRouter, Request, Response

from multiflora.engine.errors import RequestRejected

from ..access.caller import caller_of
from ..access.ownership import owner_of
from ..adapter_change import after_publication
from ..idempotency import adapter_response, once
from ..openapi import body_reference
from ..path_door import resolve_inside
from ..publishing import Publication, Terms
from ..schemas.adapter import ImportBody
from ..schemas.body import parse_body
from ..service import Service, service_of
from .preconditions import if_match_of

router = APIRouter()


@router.post("/v1/adapters/{name}/import", openapi_extra=body_reference(ImportBody))
async def import_adapter(request: Request, name: str) -> Response:
    """Publish ``hub``, an allowed repository, or ``path``, inside ``--adapters-root``."""
    service = service_of(request)
    raw = await request.body()
    body = parse_body(raw, ImportBody)
    if (body.hub is None) == (body.path is None):
        raise RequestRejected("name one source: hub or path", param="hub")
    if body.revision is not None and body.hub is None:
        raise RequestRejected("only a hub repository has revisions", param="revision")
    service.registry.check_name(name)
    terms = Terms(
        if_match=if_match_of(request),
        activate=body.activate,
        tenant=owner_of(caller_of(request), service.registry, name),
    )
    work = partial(_import, service, name, body, terms)
    fingerprint = hashlib.sha256(raw).hexdigest()
    with service.drain.running():
        return await once(request, service, work, fingerprint=fingerprint)


async def _import(
    service: Service, name: str, body: ImportBody, terms: Terms, is_repeated: bool
) -> Response:
    is_new = name not in service.registry
    publish = _from_path if body.hub is None else _from_hub
    taken = await service.publisher.run(publish, service, name, body, terms)
    shown = await after_publication(service, taken)
    return adapter_response(orjson.dumps(shown), 201 if is_new else 200)


def _from_path(service: Service, name: str, body: ImportBody, terms: Terms) -> Publication:
    assert body.path is not None
    source = resolve_inside(service.adapters_root, body.path)
    return service.publisher.publish(source, name, source=f"path:{source}", terms=terms)


def _from_hub(service: Service, name: str, body: ImportBody, terms: Terms) -> Publication:
    assert body.hub is not None
    store = service.registry.store
    assert store is not None
    with store.staging() as folder:
        commit = service.hub.fetch(
            body.hub, body.revision, folder, max_bytes=service.limits.max_upload_bytes
        )
        source = f"hub:{body.hub}@{commit}"
        return service.publisher.publish(folder, name, source=source, terms=terms)
