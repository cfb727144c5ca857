"""``POST /v1/adapters/{name}/...``: what can be done to an adapter that exists."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from functools import partial

import orjson
from fastapi import APIRouter, Request, Response

from multiflora.adapters.entry import AdapterEntry
from multiflora.adapters.error import UnknownVersion
from multiflora.engine.errors import RequestRejected

from ..access.caller import caller_of
from ..adapter_change import after_change
from ..adapter_view import view_adapter
from ..errors import WrongBase
from ..idempotency import adapter_response, once
from ..openapi import body_reference
from ..schemas.adapter import CanaryBody, RollbackBody
from ..schemas.body import Body, parse_body
from ..service import Service, service_of
from .preconditions import if_match_of

router = APIRouter()


@router.post("/v1/adapters/{name}/rollback", openapi_extra=body_reference(RollbackBody))
async def roll_back(request: Request, name: str) -> Response:
    """Go back to ``version``, or to the one that was active before."""
    service = service_of(request)
    body = await _body(request, RollbackBody)
    _check_seen(request, body.version)
    _check_base(service, body.version)
    change = partial(service.registry.rollback, name, body.version, if_match=if_match_of(request))
    return await _act(request, "rollback", change, can_repeat=body.version is not None)


@router.post("/v1/adapters/{name}/canary", openapi_extra=body_reference(CanaryBody))
async def set_canary(request: Request, name: str) -> Response:
    """Give another version a share of the name's new requests; weight 0 ends it."""
    service = service_of(request)
    body = await _body(request, CanaryBody)
    _check_seen(request, body.version)
    _check_base(service, body.version)
    if body.weight == 0:
        return await _act(request, "canary", partial(service.registry.clear_canary, name))
    if body.version is None:
        raise RequestRejected("version is missing: which one is the canary?", param="version")
    change = partial(service.registry.set_canary, name, body.version, body.weight)
    return await _act(request, "canary", change)


@router.post("/v1/adapters/{name}/promote")
async def promote(request: Request, name: str) -> Response:
    """Make the canary the active version."""
    registry = service_of(request).registry
    change = partial(registry.promote, name, if_match=if_match_of(request))
    return await _act(request, "promote", change)


@router.post("/v1/adapters/{name}/pin")
async def pin(request: Request, name: str) -> Response:
    """Keep the adapter's versions on the device, at every swap and over restarts."""
    pin_name = partial(service_of(request).pinning.pin, name)
    return await _act_async(request, "pin", pin_name)


@router.post("/v1/adapters/{name}/unpin")
async def unpin(request: Request, name: str) -> Response:
    """Let the adapter's version leave memory when others need the room."""
    return await _act(request, "unpin", partial(service_of(request).registry.unpin, name))


@router.post("/v1/adapters/{name}/warm")
async def warm(request: Request, name: str) -> Response:
    """Load the adapter, and its canary, now; answers when no request would have to wait."""
    service = service_of(request)
    entry = service.registry.entry(name)
    _check_base(service, entry.digest)
    with service.drain.running():
        await asyncio.gather(*map(service.client.load_version, entry.in_use))
    shown = await view_adapter(service, service.registry.entry(name))
    return adapter_response(orjson.dumps(shown))


async def _body(request: Request, kind: type[Body]) -> Body:
    return parse_body(await request.body() or b"{}", kind)


async def _act(
    request: Request, action: str, change: Callable[[], AdapterEntry], *, can_repeat: bool = True
) -> Response:
    return await _act_async(
        request, action, partial(asyncio.to_thread, change), can_repeat=can_repeat
    )


async def _act_async(
    request: Request,
    action: str,
    change: Callable[[], Awaitable[AdapterEntry]],
    *,
    can_repeat: bool = True,
) -> Response:
    service = service_of(request)
    fingerprint = hashlib.sha256(await request.body()).hexdigest()
    work = partial(_change, service, action, change)
    with service.drain.running():
        return await once(request, service, work, fingerprint=fingerprint, can_repeat=can_repeat)


async def _change(
    service: Service, action: str, change: Callable[[], Awaitable[AdapterEntry]], is_repeated: bool
) -> Response:
    entry = await change()
    await after_change(service, action)
    return adapter_response(orjson.dumps(await view_adapter(service, entry)))


def _check_seen(request: Request, version: str | None) -> None:
    """Another tenant's version is no version, whoever knows its digest."""
    view = caller_of(request).view
    if version is None or view is None:
        return
    if not any(version in entry.kept for entry in service_of(request).registry.entries(view=view)):
        raise UnknownVersion(f"version {version[:12]} was never published, or was collected")


def _check_base(service: Service, version: str | None) -> None:
    match = service.publisher.match
    if version is not None and not match.accepts(version):
        raise WrongBase(match.reason(version), param="version")
