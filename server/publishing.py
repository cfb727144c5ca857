"""From a folder or archive to a version that a name points at: check, store, publish, point."""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from multiflora.adapters.entry import AdapterEntry
from multiflora.adapters.error import ForeignName, PreconditionFailed, UnknownName
from multiflora.adapters.inspection import GateLimits
from multiflora.adapters.intake import import_version
from multiflora.adapters.registry import Registry
from multiflora.adapters.target import Projection
from multiflora.adapters.version import Version

from .base_match import BaseMatch
from .errors import NameTaken, StorageFull, is_disk_full

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On what terms a version is published under a name.

    ``if_match`` is the digest that the name must point at. With ``is_new`` the name must not exist,
    unless it points at this very version and ``is_repeated``. Without ``activate`` the name keeps
    pointing where it does. A new name belongs to ``tenant``, and so must an old one; None is for
    those who may change all of them.
    """

    if_match: str | None = None
    is_new: bool = False
    is_repeated: bool = False
    activate: bool = True
    tenant: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a version comes from; see ``Version``."""

    source: str
    parents: tuple[str, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Publication:
    """The name as it is after, and the version that was published under it."""

    entry: AdapterEntry
    digest: str


class Publisher:
    """Publishes adapters; blocks for as long as a check takes. Safe to call from any thread.

    ``run`` calls its methods in threads of its own, since a check may take minutes and there are
    better uses for the threads that all requests share.
    """

    def __init__(
        self,
        registry: Registry,
        projections: Sequence[Projection] = (),
        *,
        match: BaseMatch | None = None,
        limits: GateLimits | None = None,
        num_threads: int = 2,
        with_templates: bool = False,
    ) -> None:
        self.match = match or BaseMatch()
        self._registry = registry
        self._projections = tuple(projections)
        self._limits = limits
        self._with_templates = with_templates
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="publish")
        # Names are made here only, so under this lock a name that is free stays free.
        self._lock = threading.Lock()

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def run(
        self,
        work: Callable[_Parameters, _Result],
        *args: _Parameters.args,
        **kwargs: _Parameters.kwargs,
    ) -> _Result:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(work, *args, **kwargs))

    def map(
        self, work: Callable[[Path], Version | Exception], paths: Sequence[Path]
    ) -> list[Version | Exception]:
        return list(self._threads.map(work, paths))

    def publish(self, path: Path, name: str, *, source: str | Origin, terms: Terms) -> Publication:
        """Check the PEFT folder or archive at ``path`` and publish it under ``name``.

        Raises ``AdapterRejected`` with the reason for a refusal, ``NameTaken``, ``StorageFull``,
        ``OSError`` and the errors of ``Registry.point``; the name is unchanged then.
        """
        self._registry.check_name(name)
        self._check_terms(name, None, terms)
        version = self.take_in(path, source=source)
        return Publication(self.point(name, version, terms=terms), version.digest)

    def take_in(self, path: Path, *, source: str | Origin) -> Version:
        """Check and store; ``point`` or ``give_up`` must follow. Raises as ``publish`` does."""
        origin = Origin(source=source) if isinstance(source, str) else source
        store = self._registry.store
        assert store is not None, "nothing can be published without a store"
        try:
            return import_version(
                path,
                projections=self._projections,
                store=store,
                limits=self._limits,
                source=origin.source,
                parents=origin.parents,
                metrics=origin.metrics,
                base=self.match.base,
                with_template=self._with_templates,
            )
        except OSError as error:
            if is_disk_full(error):
                raise StorageFull("the disk is full; nothing was published") from error
            raise

    def give_up(self, version: Version) -> None:
        """Let go of a version that was taken in and is not wanted; ``collect`` frees its bytes."""
        assert self._registry.store is not None
        self._registry.store.release(version.digest)

    def point(self, name: str, version: Version, *, terms: Terms) -> AdapterEntry:
        """Publish what was taken in and have ``name`` point at it. Raises as ``publish`` does."""
        with self._lock:
            try:
                self._check_terms(name, version.digest, terms)
                self._registry.publish_version(version)
            except BaseException:
                self.give_up(version)
                raise
            self.match.accept(version.digest)
            try:
                entry = self._registry.point(
                    name,
                    version.digest,
                    if_match=terms.if_match,
                    activate=terms.activate,
                    tenant=terms.tenant,
                )
            except BaseException:
                if version.digest in self._registry.candidates():
                    self._registry.retire(version.digest)
                raise
            return self._without_foreign_canary(entry)

    def _without_foreign_canary(self, entry: AdapterEntry) -> AdapterEntry:
        """A canary of another base cannot take its share once the name serves this base again."""
        if entry.canary and not self.match.accepts(entry.canary.digest):
            return self._registry.clear_canary(entry.name)
        return entry

    def _check_terms(self, name: str, digest: str | None, terms: Terms) -> None:
        """Refuse early what cannot succeed; ``digest`` is None before it is known."""
        try:
            entry = self._registry.entry(name)
        except UnknownName:
            if not terms.activate:
                raise
            if terms.if_match is not None:
                raise PreconditionFailed(
                    f"{name!r} does not exist; leave If-Match out to make it"
                ) from None
            return
        if terms.tenant not in (None, entry.tenant):
            raise ForeignName(name)
        is_same = terms.is_repeated and digest in (None, entry.digest)
        if terms.is_new and not is_same:
            raise NameTaken(f"{name!r} exists; PUT /v1/adapters/{name} publishes a new version")
