"""Pinned adapters are in the engine's memory before their first request."""

import logging

from multiflora.adapters.entry import AdapterEntry
from multiflora.adapters.error import AdapterRejected
from multiflora.engine.client import EngineClient
from multiflora.engine.errors import EngineUnavailable

logger = logging.getLogger(__name__)


async def load_if_pinned(client: EngineClient, entry: AdapterEntry) -> None:
    """Wait until the versions of a pinned name are loaded.

    Never raises: the adapter is served either way, its first request then waits for the load.
    """
    if not entry.is_pinned:
        return
    for digest in entry.in_use:
        try:
            await client.load_version(digest)
        except (AdapterRejected, EngineUnavailable) as error:
            logger.warning("pinned adapter %r was not loaded: %s", entry.name, error)
