"""``/v1/models``: the base and its adapters."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from multiflora.engine.errors import RequestRejected

from ..access.caller import caller_of
from ..adapter_view import known_tiers
from ..removal import remove_adapter
from ..service import service_of

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """List the base first, then the adapters by name."""
    service = service_of(request)
    cards = await asyncio.to_thread(
        service.catalog.cards,
        max_model_len=service.client.info.max_model_len,
        view=caller_of(request).view,
        tiers=await known_tiers(service),
    )
    return {"object": "list", "data": cards}


@router.get("/v1/models/{model:path}")
async def retrieve_model(request: Request, model: str) -> dict[str, Any]:
    """Describe one model; its id may contain slashes."""
    service = service_of(request)
    return await asyncio.to_thread(
        service.catalog.card,
        model,
        max_model_len=service.client.info.max_model_len,
        view=caller_of(request).view,
        tiers=await known_tiers(service),
    )


@router.delete("/v1/models/{model:path}")
async def delete_model(request: Request, model: str) -> dict[str, Any]:
    """Forget an adapter; running requests finish. The base stays."""
    service = service_of(request)
    card = service.catalog.card(model, max_model_len=service.client.info.max_model_len)
    if card["parent"] is None:
        raise RequestRejected("the base cannot be deleted", param="model")
    await remove_adapter(service, card["id"])
    return {"id": card["id"], "object": "model", "deleted": True}
