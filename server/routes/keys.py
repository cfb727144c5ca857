"""``/v1/keys``: make, list and revoke API keys."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from multiflora.engine.errors import RequestRejected

from ..access.caller import Scope
from ..openapi import body_reference
from ..schemas.body import parse_body
from ..schemas.key import KeyBody, key_object
from ..schemas.page import page_object
from ..service import service_of

router = APIRouter()


@router.post("/v1/keys", status_code=201, openapi_extra=body_reference(KeyBody))
async def create_key(request: Request) -> dict[str, Any]:
    """Make a key. ``key`` is in this answer only; the server keeps a hash of it."""
    keyring = service_of(request).keyring
    body = parse_body(await request.body(), KeyBody)
    try:
        wish = body.wish()
        if keyring.is_open and Scope.ADMIN not in wish.scopes:
            raise RequestRejected(
                "the first key closes the server; it needs the scope 'admin', to make others with",
                param="scopes",
            )
        key, text = await asyncio.to_thread(keyring.registry.create, wish)
    except ValueError as error:
        raise RequestRejected(str(error)) from None
    return key_object(key, text=text)


@router.get("/v1/keys")
async def list_keys(request: Request) -> dict[str, Any]:
    """All keys of the database, also those that are not good any more."""
    keys = service_of(request).keyring.registry.keys()
    return page_object([key_object(key) for key in keys], has_more=False)


@router.delete("/v1/keys/{key_id}")
async def revoke_key(request: Request, key_id: str) -> dict[str, Any]:
    """Refuse the key from now on; what it made stays."""
    registry = service_of(request).keyring.registry
    return key_object(await asyncio.to_thread(registry.revoke, key_id))
