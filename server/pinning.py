"""Pinned names: their versions are on the device before their first request, and stay there.

A pin belongs to a name and moves with it: what is pinned in the engine is always derived from the
registry, never counted up and down.
"""

import asyncio
import logging
from typing import Final

from multiflora.adapters.entry import AdapterEntry
from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.registry import Registry
from multiflora.engine.client import EngineClient
from multiflora.engine.errors import EngineUnavailable

from .base_match import BaseMatch

logger = logging.getLogger(__name__)

# A device that is full of leased versions makes room when their requests end.
_PATIENCE_SECONDS: Final = 30.0


class Pinning:
    """Brings the engine's pins in line with the registry's."""

    def __init__(self, registry: Registry, client: EngineClient, match: BaseMatch) -> None:
        self._registry = registry
        self._client = client
        self._match = match
        # What was said last of a version that is not pinned: said once, not at every try.
        self._said: dict[str, str] = {}

    async def pin(self, name: str) -> AdapterEntry:
        """Pin a name; returns when its versions are on the device.

        Raises ``UnknownName``, or ``AdapterRejected`` if pins leave no room for it or it cannot be
        loaded; a name that was not pinned before is not pinned then. Without an engine the name is
        pinned and the next engine does the rest.
        """
        was_pinned = self._registry.entry(name).is_pinned
        entry = await asyncio.to_thread(self._registry.pin, name)
        problems = await self.reconcile()
        refusals = [problems[digest] for digest in entry.in_use if digest in problems]
        if refusals and not was_pinned:
            await asyncio.to_thread(self._registry.unpin, name)
            await self.reconcile()
            raise refusals[0]
        return entry

    async def reconcile(self) -> dict[str, AdapterRejected]:
        """Pin what pinned names use and unpin the rest; returns when it is on the device.

        Returns the refusals by digest: such a version is served all the same, from wherever it is.
        That there is no engine, or no room yet, is no refusal.
        """
        wanted = self._wanted()
        # Room is made before it is asked for. No other task runs between here and the pins.
        for digest in self._client.pinned_versions:
            if digest not in wanted:
                await self._client.unpin(digest)
        digests = sorted(wanted)
        refusals = await asyncio.gather(*map(self._pin, digests))
        return {d: refusal for d, refusal in zip(digests, refusals, strict=True) if refusal}

    async def _pin(self, digest: str) -> AdapterRejected | None:
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._client.pin(digest)
        except AdapterRejected as refusal:
            self._say(digest, f"is not pinned: {refusal}")
            return refusal
        except (EngineUnavailable, TimeoutError) as error:
            # The pin stands: the next engine, or the end of whatever fills the device, fulfils it.
            self._say(digest, f"is not on the device yet: {error}")
        else:
            self._said.pop(digest, None)
        return None

    def _say(self, digest: str, text: str) -> None:
        if self._said.get(digest) != text:
            self._said[digest] = text
            logger.warning("version %s of a pinned adapter %s", digest[:12], text)

    def _wanted(self) -> set[str]:
        return {
            digest
            for entry in self._registry.entries()
            if entry.is_pinned
            for digest in entry.in_use
            if self._match.accepts(digest)
        }
