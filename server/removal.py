"""One way to forget a name, whichever door the request came through."""

import asyncio

from .adapter_change import after_change
from .service import Service


async def remove_adapter(service: Service, name: str, *, if_match: str | None = None) -> None:
    """Forget ``name``; running requests finish. Raises what ``Registry.delete`` raises."""
    with service.drain.running():
        await asyncio.to_thread(service.registry.delete, name, if_match=if_match)
        await after_change(service, "delete")
