"""What follows a change to adapters, whichever door it came through."""

from typing import Any

from .adapter_view import view_adapter
from .publishing import Publication
from .service import Service


async def after_change(service: Service, action: str) -> None:
    """Count ``action``, and have the engine's pins follow it."""
    service.metrics.adapter_change(action)
    await service.pinning.reconcile()


async def after_publication(service: Service, publication: Publication) -> dict[str, Any]:
    """The adapter as the API shows it, with the version that was ``published``."""
    await after_change(service, "publish")
    shown = await view_adapter(service, publication.entry)
    return {**shown, "published": publication.digest}
