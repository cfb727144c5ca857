"""What is true of adapters right now: the registry's rows beside the engine's memory."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from multiflora.adapters.entry import AdapterEntry
from multiflora.adapters.tier import Tier
from multiflora.engine.errors import EngineUnavailable

from .schemas.adapter import adapter_object, version_object
from .service import Service

# An engine in a long step answers between steps; a list need not wait for it.
_PATIENCE_SECONDS: Final = 2.0
_SHORT_PATIENCE_SECONDS: Final = 0.2


async def view_adapter(service: Service, entry: AdapterEntry) -> dict[str, Any]:
    (shown,) = await view_adapters(service, [entry])
    return shown


async def view_adapters(service: Service, entries: Sequence[AdapterEntry]) -> list[dict[str, Any]]:
    tiers = await _tiers(service)
    return await asyncio.to_thread(_adapters, service, entries, tiers)


async def view_versions(service: Service, name: str) -> list[dict[str, Any]]:
    """What the adapter keeps, the one used last first. Raises ``UnknownName``."""
    service.registry.entry(name)
    tiers = await _tiers(service)
    return await asyncio.to_thread(_versions, service, name, tiers)


def _adapters(
    service: Service, entries: Sequence[AdapterEntry], tiers: Mapping[str, Tier]
) -> list[dict[str, Any]]:
    leases = service.registry.leases_by_digest()
    return [
        adapter_object(
            entry,
            service.registry.version(entry.digest),
            tiers=tiers,
            leases=leases,
            problem=service.catalog.reason(entry),
        )
        for entry in entries
    ]


def _versions(service: Service, name: str, tiers: Mapping[str, Tier]) -> list[dict[str, Any]]:
    leases = service.registry.leases_by_digest()
    entry = service.registry.entry(name)
    versions = service.registry.versions(name)
    return [version_object(entry, one, tiers=tiers, leases=leases) for one in versions]


async def known_tiers(
    service: Service, *, patience_seconds: float = _SHORT_PATIENCE_SECONDS
) -> Mapping[str, Tier] | None:
    """Where versions are; None if the engine does not say so in time."""
    try:
        async with asyncio.timeout(patience_seconds):
            return await service.client.adapter_states()
    except (EngineUnavailable, TimeoutError):
        return None


async def _tiers(service: Service) -> Mapping[str, Tier]:
    return await known_tiers(service, patience_seconds=_PATIENCE_SECONDS) or {}
