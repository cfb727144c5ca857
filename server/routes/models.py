"""``GET /v1/models``: the base and its adapters."""

from typing import Any

from fastapi import APIRouter, Request

from ..access.caller import caller_of
from ..service import service_of

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """List the base first, then the adapters by name."""
    service = service_of(request)
    cards = service.catalog.cards(
        max_model_len=service.client.info.max_model_len, view=caller_of(request).view
    )
    return {"object": "list", "data": cards}


@router.get("/v1/models/{model:path}")
async def retrieve_model(request: Request, model: str) -> dict[str, Any]:
    """Describe one model; its id may contain slashes."""
    service = service_of(request)
    return service.catalog.card(
        model, max_model_len=service.client.info.max_model_len, view=caller_of(request).view
    )
