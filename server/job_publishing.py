"""What training jobs make, on its way through the ordinary publishing."""

import asyncio
import errno
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from multiflora.adapters.error import UnknownName
from multiflora.adapters.registry import Registry

from .errors import StorageFull
from .metrics import Metrics
from .pinning import Pinning
from .publishing import Origin, Publisher


class JobPublishing:
    """Takes in trained versions as candidates, which no name has yet, and points names at them."""

    def __init__(
        self, registry: Registry, publisher: Publisher, pinning: Pinning, metrics: Metrics
    ) -> None:
        self._registry = registry
        self._publisher = publisher
        self._pinning = pinning
        self._metrics = metrics

    async def take_in(
        self, folder: Path, *, source: str, parents: tuple[str, ...], metrics: Mapping[str, Any]
    ) -> str:
        """Raises ``AdapterRejected``, ``OSError`` and errors of the registry."""
        origin = Origin(source=source, parents=parents, metrics=metrics)
        return await self._publisher.run(self._take_in, folder, origin)

    async def live(self, name: str, *, view: str | None = None) -> str | None:
        if name not in self._registry:
            return None
        entry = self._registry.entry(name)
        return entry.digest if entry.is_seen_by(view) else None

    async def point(self, name: str, digest: str, *, tenant: str = "") -> None:
        await asyncio.to_thread(partial(self._registry.point, name, digest, tenant=tenant))
        self._metrics.adapter_change("publish")
        await self._pinning.reconcile()

    async def set_canary(self, name: str, digest: str, weight: float, *, live: str) -> bool:
        is_set = await asyncio.to_thread(self._set_canary, name, digest, weight, live)
        if is_set:
            self._metrics.adapter_change("canary")
            await self._pinning.reconcile()
        return is_set

    async def discard(self, digest: str) -> None:
        await asyncio.to_thread(self._discard, digest)

    async def remove(self, name: str, *, tenant: str = "") -> None:
        with suppress(UnknownName):
            if self._registry.entry(name).tenant != tenant:
                return
            await asyncio.to_thread(partial(self._registry.delete, name))
            self._metrics.adapter_change("delete")
            await self._pinning.reconcile()

    def _take_in(self, folder: Path, origin: Origin) -> str:
        try:
            version = self._publisher.take_in(folder, source=origin)
        except StorageFull as error:
            raise OSError(errno.ENOSPC, str(error)) from error
        try:
            self._registry.publish_version(version)
        except BaseException:
            self._publisher.give_up(version)
            raise
        self._publisher.match.accept(version.digest)
        return version.digest

    def _set_canary(self, name: str, digest: str, weight: float, live: str) -> bool:
        with self._registry.database.lock:
            try:
                entry = self._registry.entry(name)
            except UnknownName:
                return False
            canary = entry.canary.digest if entry.canary else digest
            if entry.digest != live or canary != digest or digest == live:
                return False
            self._registry.set_canary(name, digest, weight)
        return True

    def _discard(self, digest: str) -> None:
        with self._registry.database.lock:
            if digest in self._registry.candidates():
                self._registry.retire(digest)
