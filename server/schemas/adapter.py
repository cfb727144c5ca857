"""Adapters and versions as the API shows them, and the bodies of what can be done to them."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from multiflora.adapters.entry import AdapterEntry, HistoryEvent
from multiflora.adapters.tier import Tier
from multiflora.adapters.version import Version

from .body import RequestBody


class RollbackBody(RequestBody):
    """``version`` None is the one that was active before."""

    version: str | None = Field(None, max_length=64)


class CanaryBody(RequestBody):
    """``weight`` is the share of new requests; 0 ends the canary."""

    version: str | None = Field(None, max_length=64)
    weight: float = Field(ge=0, le=1, allow_inf_nan=False)


class ImportBody(RequestBody):
    """One of ``hub``, a repository of the Hugging Face hub, and ``path``, on the server."""

    hub: str | None = Field(None, max_length=200)
    revision: str | None = Field(None, min_length=1, max_length=200)
    path: str | None = Field(None, min_length=1, max_length=4096)
    activate: bool = True


def adapter_object(
    entry: AdapterEntry,
    version: Version,
    *,
    tiers: Mapping[str, Tier],
    leases: Mapping[str, int],
    problem: str | None,
) -> dict[str, Any]:
    """``state`` is where the weights are; ``problem`` says why it is not served."""
    canary = entry.canary
    return {
        "id": entry.name,
        "object": "adapter",
        "name": entry.name,
        "version": entry.digest,
        "state": tiers.get(entry.digest, Tier.DISK),
        "bytes": version.num_bytes,
        "rank": version.rank,
        "features": list(version.features),
        "leases": sum(leases.get(digest, 0) for digest in entry.in_use),
        "pinned": entry.is_pinned,
        "canary": {"version": canary.digest, "weight": canary.weight} if canary else None,
        "versions": list(entry.kept),
        "served": problem is None,
        "problem": problem,
        "created": entry.created,
        "updated": entry.updated,
    }


def version_object(
    entry: AdapterEntry, version: Version, *, tiers: Mapping[str, Tier], leases: Mapping[str, int]
) -> dict[str, Any]:
    digest = version.digest
    return {
        "id": digest,
        "object": "adapter.version",
        "version": digest,
        "active": digest == entry.digest,
        "canary": entry.canary is not None and digest == entry.canary.digest,
        "state": tiers.get(digest, Tier.DISK),
        "bytes": version.num_bytes,
        "rank": version.rank,
        "features": list(version.features),
        "leases": leases.get(digest, 0),
        "source": _shown_source(version.source),
        "parents": list(version.parents),
        "metrics": dict(version.metrics),
        "base": version.base,
        "created": version.created,
    }


def _shown_source(source: str) -> str:
    """Without what follows the colon where that is a path of the server's."""
    return source if source.startswith("hub:") else source.partition(":")[0]


def event_object(event: HistoryEvent) -> dict[str, Any]:
    return {
        "id": event.id,
        "object": "adapter.event",
        "action": event.action,
        "from": event.from_digest,
        "to": event.to_digest,
        "weight": event.weight,
        "evidence": None if event.evidence is None else dict(event.evidence),
        "created": event.time,
    }
