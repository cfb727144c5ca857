"""What a running server does by itself: look for new adapters, forget versions nobody can reach,
keep pins."""

import asyncio
import contextlib
import logging
import time
from typing import Final

from multiflora.adapters.error import RegistryError
from multiflora.adapters.registry import Registry
from multiflora.engine.client import EngineClient
from multiflora.engine.errors import EngineUnavailable

from .pinning import Pinning
from .publishing import Publisher
from .watched_folder import WatchedFolder

logger = logging.getLogger(__name__)

SCAN_SECONDS: Final = 3.0
COLLECT_SECONDS: Final = 30.0


class Housekeeping:
    """``run`` until it is cancelled."""

    def __init__(
        self,
        registry: Registry,
        publisher: Publisher,
        client: EngineClient,
        pinning: Pinning,
        *,
        watched: WatchedFolder | None = None,
        scan_seconds: float = SCAN_SECONDS,
        collect_seconds: float = COLLECT_SECONDS,
    ) -> None:
        self._registry = registry
        self._publisher = publisher
        self._client = client
        self._pinning = pinning
        self._watched = watched
        self._scan_seconds = scan_seconds
        self._collect_seconds = collect_seconds

    async def run(self) -> None:
        collected = time.monotonic()
        while True:
            await asyncio.sleep(self._scan_seconds)
            try:
                if self._watched:
                    await self._publisher.run(self._watched.scan)
                if time.monotonic() - collected >= self._collect_seconds:
                    collected = time.monotonic()
                    await self.collect()
                await self._pinning.reconcile()
            except (RegistryError, OSError):
                logger.exception("housekeeping failed; it is tried again")

    async def collect(self) -> None:
        """Remove what no name keeps and no request holds, from the disk and from the engine."""
        digests = await self._publisher.run(self._registry.collect)
        for digest in digests:
            with contextlib.suppress(EngineUnavailable):
                await self._client.unload_version(digest)
