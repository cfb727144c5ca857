"""Clients of several tenants."""

from typing import Any

import httpx
import pytest

from multiflora.server.access.api_key import KeyWish
from multiflora.server.access.caller import Scope
from multiflora.server.app import create_app
from multiflora.server.service import Service


@pytest.fixture
async def tenant(service: Service) -> Any:
    """``tenant("red")`` -> a client with a key for everything but administration."""
    app = create_app(service)
    everything = frozenset(Scope) - {Scope.ADMIN}
    clients: list[httpx.AsyncClient] = []

    def make(name: str, scopes: frozenset[Scope] = everything) -> httpx.AsyncClient:
        wish = KeyWish(name="test", scopes=scopes, tenant=name)
        key = service.keyring.registry.create(wish)[1]
        clients.append(
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app=app),
                base_url="http://server",
                headers={"authorization": f"Bearer {key}"},
            )
        )
        return clients[-1]

    yield make
    for client in clients:
        await client.aclose()
