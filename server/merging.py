"""Merges of published adapters: one at a time, in a process, then in by the ordinary way."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from multiflora.adapters.error import (
    AdapterRejected,
    ForeignName,
    PreconditionFailed,
    UnknownName,
)
from multiflora.adapters.merging.child import MergeChild
from multiflora.adapters.merging.process_message import MergeLimits, MergeRequest
from multiflora.adapters.merging.recipe import Recipe
from multiflora.adapters.registry import Registry
from multiflora.engine.errors import EngineOverloaded, EngineUnavailable

from .cancellation import Cancellation
from .errors import NameTaken, StorageFull, WrongBase, is_disk_full
from .publishing import Origin, Publication, Publisher, Terms

_MAX_WAITING: Final = 8
Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeOrder:
    """A merge to be done; ``sources`` are names and the digests that are leased for them."""

    name: str
    sources: Sequence[tuple[str, str]]
    recipe: Recipe
    terms: Terms
    cancellation: Cancellation = field(default_factory=Cancellation)


@dataclass(frozen=True, slots=True)
class MergeAnswer:
    publication: Publication
    report: Mapping[str, Any]


class Merger:
    """Runs merges, one at a time since each may use half of the machine. Needs no torch."""

    def __init__(
        self, registry: Registry, publisher: Publisher, *, limits: MergeLimits | None = None
    ) -> None:
        self._registry = registry
        self._publisher = publisher
        self._limits = limits or MergeLimits()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="merge")
        self._children: set[MergeChild] = set()
        self._num_waiting = 0
        self._is_closed = False

    def close(self) -> None:
        """End the merge that runs; those that wait fail."""
        self._is_closed = True
        for child in tuple(self._children):
            child.kill()
        self._thread.shutdown(wait=True)

    @contextmanager
    def leased(
        self, sources: Sequence[tuple[str, str | None]], *, view: str | None = None
    ) -> Iterator[list[tuple[str, str]]]:
        """Hold one version of every name in a tenant's ``view``, by default the active one.

        Raises ``UnknownName``, ``UnknownVersion``, and ``WrongBase`` for a version that cannot run
        on the base that is served.
        """
        match = self._publisher.match
        with ExitStack() as held:
            found = []
            for index, (name, digest) in enumerate(sources):
                lease = held.enter_context(self._registry.lease_version(name, digest, view=view))
                if not match.accepts(lease.digest):
                    reason = f"{name!r}: {match.reason(lease.digest)}"
                    raise WrongBase(reason, param=f"sources.{index}.adapter")
                found.append((name, lease.digest))
            yield found

    def check(self, name: str, terms: Terms) -> None:
        """Refuse before a long merge what could not be published after it."""
        self._registry.check_name(name)
        try:
            entry = self._registry.entry(name)
        except UnknownName:
            return
        if terms.tenant not in (None, entry.tenant):
            raise ForeignName(name)
        if terms.if_match not in (None, entry.digest):
            raise PreconditionFailed(
                f"{name!r} points at {entry.digest[:12]}; read it again and decide anew"
            )
        if terms.is_new and not terms.is_repeated:
            raise NameTaken(
                f"{name!r} exists; choose another name, or say replace to make a new version of it"
            )

    async def merge(self, order: MergeOrder, on_progress: Progress) -> MergeAnswer:
        """Merge and publish. ``on_progress`` is called from another thread, first with 0.

        Raises ``AdapterRejected``, ``EngineOverloaded`` where too many wait,
        ``EngineUnavailable`` once it is closed, ``Cancelled``, and as ``Publisher.publish`` does;
        nothing was published then.
        """
        if self._is_closed:
            raise EngineUnavailable("the server is shutting down")
        if self._num_waiting >= _MAX_WAITING:
            raise EngineOverloaded(f"{self._num_waiting} merges are waiting; try again later")
        self._num_waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._merge, order, on_progress)
        finally:
            self._num_waiting -= 1

    def _merge(self, order: MergeOrder, on_progress: Progress) -> MergeAnswer:
        store = self._registry.store
        assert store is not None, "nothing can be merged without a store"
        try:
            order.cancellation.check()
            on_progress(0.0)
            with store.staging() as folder:
                request = MergeRequest(
                    tuple(str(store.open(digest).path.absolute()) for _, digest in order.sources),
                    tuple(name for name, _ in order.sources),
                    order.recipe,
                    str((folder / "merged").absolute()),
                    self._limits,
                )
                done = self._run(MergeChild(request), order.cancellation, on_progress)
                order.cancellation.seal()
                origin = Origin(
                    source=f"merge:{order.recipe.method}",
                    parents=tuple(digest for _, digest in order.sources),
                    metrics={"merge": done.provenance},
                )
                publication = self._publisher.publish(
                    folder / "merged", order.name, source=origin, terms=order.terms
                )
        except OSError as error:
            if is_disk_full(error):
                raise StorageFull("the disk is full; nothing was published") from error
            raise
        except AdapterRejected as error:
            order.cancellation.check()
            if error.code == "rank_too_large":
                raise _too_many_ranks(order) from error
            raise
        return MergeAnswer(publication, done.report)

    def _run(self, child: MergeChild, cancellation: Cancellation, on_progress: Progress) -> Any:
        cancellation.watch(child)
        self._children.add(child)
        try:
            if self._is_closed:
                raise EngineUnavailable("the server is shutting down")
            return child.run(on_progress)
        finally:
            self._children.discard(child)


def _too_many_ranks(order: MergeOrder) -> AdapterRejected:
    return AdapterRejected(
        "rank_too_large",
        f"the {order.recipe.method} of these parents has more ranks than this server takes; ask "
        "for fewer with rank, such as 64 or energy:0.99",
    )
