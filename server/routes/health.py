"""Probes, version and metrics: public, without secrets."""

import asyncio

from fastapi import APIRouter, Request, Response

import multiflora
from multiflora.engine.client import EngineState
from multiflora.engine.errors import EngineLoading

from ..access.caller import caller_of
from ..errors import Draining
from ..metric.cached_page import CachedPage
from ..metric.visible_page import visible_page
from ..metrics import CONTENT_TYPE
from ..refusal import Saturated
from ..service import service_of

router = APIRouter()


@router.get("/live")
async def live() -> dict[str, str]:
    """Say that the API process runs."""
    return {"status": "live"}


@router.get("/ready")
@router.get("/health")
async def ready(request: Request) -> dict[str, str]:
    """Say whether inference requests would be taken; 503 otherwise."""
    service = service_of(request)
    if service.drain.is_announced:
        raise Draining("the server is shutting down")
    if service.client.state is not EngineState.READY:
        raise EngineLoading(f"the engine is {service.client.state}")
    if service.admission.is_saturated:
        raise Saturated("the queue is filling up; other replicas have more room")
    return {"status": "ready"}


@router.get("/version")
async def version() -> dict[str, str]:
    return {"version": multiflora.__version__}


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """The server and the adapters with most requests, in Prometheus' text format."""
    service = service_of(request)
    return await _written(request, service.metrics.page, is_open=service.open_metrics)


@router.get("/metrics/adapters")
async def adapter_metrics(request: Request) -> Response:
    """Every adapter, in Prometheus' text format; as long as there are adapters."""
    return await _written(request, service_of(request).metrics.adapter_page)


async def _written(request: Request, page: CachedPage, *, is_open: bool = False) -> Response:
    """As it is kept, unless the client says ``cache-control: no-cache``.

    A tenant's key sees of adapters what it sees elsewhere; one of no tenant is the operator's.
    """
    is_kept_good = "no-cache" not in request.headers.get("cache-control", "")
    content = await (page.get() if is_kept_good else page.get_new())
    view = None if is_open else caller_of(request).view
    if view:
        service = service_of(request)
        names = {service.catalog.base, *(e.name for e in service.registry.entries(view=view))}
        content = await asyncio.to_thread(visible_page, content, names)
    return Response(content, media_type=CONTENT_TYPE)
