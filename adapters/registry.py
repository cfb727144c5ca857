"""Names that clients put in ``model``, the versions they point at, and the leases on those."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self, TypeAlias

from .canary import Canary
from .change import Change
from .database import Database
from .entry import AdapterEntry, HistoryEvent
from .error import AdapterRejected, UnknownName, UnknownVersion
from .fault import reach
from .kept_answer import KeptAnswers
from .lease import Lease, LeaseTable
from .name import check_name
from .registry_schema import MIGRATIONS
from .registry_tables import RegistryTables
from .store import AdapterStore
from .version import Version, check_digest

logger = logging.getLogger(__name__)

DATABASE_NAME: Final = "multiflora.db"
Evidence: TypeAlias = Mapping[str, Any] | None


class Registry:
    """Resolves a name and takes the lease in one atomic step. Safe to call from any thread.

    A change is on the disk, and seen by ``lease``, when its method returns; it may wait for the
    disk. ``lease``, ``entry``, ``entries`` and ``features`` are answered from memory at once.
    Without a database everything is forgotten at the end; without a store, versions have no bytes.
    """

    def __init__(
        self,
        database: Database | None = None,
        *,
        store: AdapterStore | None = None,
        reserved: Collection[str] = (),
        keep_last: int = 3,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if keep_last < 1:
            raise ValueError(f"keep_last is {keep_last}; a name keeps at least 1 version")
        self.store = store
        # Others keep their tables in it too.
        self.database = database or Database.in_memory(MIGRATIONS)
        self._reserved = frozenset(reserved)
        self._keep_last = keep_last
        self._clock = clock
        self.answers = KeptAnswers(self.database, clock=clock)
        # Guards everything below, for moments only; taken after the database's lock.
        self._lock = threading.Lock()
        self._leases = LeaseTable(self._lock)
        self._draws: Counter[str] = Counter()
        with self._tables() as tables:
            self._entries = {entry.name: entry for entry in tables.entries()}
            self._features = tables.features()
        self._report_missing()

    @classmethod
    def open(
        cls,
        data_dir: Path,
        *,
        store: AdapterStore | None = None,
        reserved: Collection[str] = (),
        keep_last: int = 3,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """The registry of ``data_dir``, held until ``close`` against every other process.

        ``reserved`` are names that no adapter may have, such as the base's; ``keep_last`` is how
        many versions each name keeps at hand. Raises ``RegistryUnavailable``.
        """
        database = Database.open(data_dir / DATABASE_NAME, MIGRATIONS)
        try:
            return cls(
                database,
                store=store or AdapterStore(data_dir),
                reserved=reserved,
                keep_last=keep_last,
                clock=clock,
            )
        except BaseException:
            database.close()
            raise

    def close(self) -> None:
        """Give up the database. Leases may still be released."""
        self.database.close()

    def lease(self, name: str, user: str | None = None, *, view: str | None = None) -> Lease:
        """Take a lease on the version behind ``name``; raises ``UnknownName`` (a ``KeyError``).

        A tenant's ``view`` holds its own names and the shared ones; None holds all, here and below.

        While a canary runs, a ``user`` gets it always or never, by a hash; requests without a user
        get it in turn, evenly spread. The share is the canary's weight in both cases.
        """
        with self._lock:
            entry = self._entries.get(name)
            if entry is None or not entry.is_seen_by(view):
                raise UnknownName(name)
            canary = self._chosen_canary(entry, user)
            digest = canary.digest if canary else entry.digest
            return self._leases.take(name, digest, is_canary=canary is not None)

    def lease_version(
        self, name: str, digest: str | None = None, *, view: str | None = None
    ) -> Lease:
        """Take a lease on a version that ``name`` keeps, by default the one it points at.

        Raises ``UnknownName``, ``UnknownVersion``.
        """
        with self._lock:
            entry = self._entries.get(name)
            if entry is None or not entry.is_seen_by(view):
                raise UnknownName(name)
            if digest is not None and digest not in entry.kept:
                raise UnknownVersion(f"{name!r} does not keep version {digest[:64]!r}")
            return self._leases.take(name, digest or entry.digest, is_canary=False)

    def _chosen_canary(self, entry: AdapterEntry, user: str | None) -> Canary | None:
        canary = entry.canary
        if canary is None:
            return None
        if user is not None:
            return canary if canary.has_user(entry.name, user) else None
        self._draws[entry.name] += 1
        return canary if canary.has_draw(self._draws[entry.name]) else None

    def num_leases(self, digest: str) -> int:
        return self.leases_by_digest().get(digest, 0)

    def leases_by_digest(self) -> dict[str, int]:
        """Leases of every version that has any."""
        with self._lock:
            return self._leases.counts()

    def entries(self, *, view: str | None = None) -> tuple[AdapterEntry, ...]:
        """All names, sorted."""
        with self._lock:
            found = [self._entries[name] for name in sorted(self._entries)]
        return tuple(entry for entry in found if entry.is_seen_by(view))

    def __contains__(self, name: str) -> bool:
        with self._lock:
            return name in self._entries

    def entry(self, name: str) -> AdapterEntry:
        """Raises ``UnknownName``."""
        with self._lock:
            if name not in self._entries:
                raise UnknownName(name)
            return self._entries[name]

    def check_name(self, name: str) -> None:
        """Raise ``InvalidName`` if no adapter may have this name."""
        check_name(name, self._reserved)

    def publish(self, name: str, digest: str) -> AdapterEntry:
        """Publish a version of which nothing else is known, and point ``name`` at it."""
        check_name(name, self._reserved)
        with self.database.lock:
            self.publish_version(Version(digest))
            return self.point(name, digest)

    def publish_version(self, version: Version) -> Version:
        """Make a version known; returns what is known of it, which is the first record.

        Only its base is that of the last check: one adapter may fit several. It stays until a name
        has kept it and let it go, or it is retired. Raises ``AdapterRejected`` if its bytes are not
        in the store.
        """
        # The lock keeps `collect` from the bytes between the look and the row.
        with self.database.lock:
            if self.store is not None and version.digest not in self.store:
                raise AdapterRejected(
                    "unknown_version",
                    f"version {version.digest[:12]} is not in the store; import it again",
                )
            with self._change("publish") as change:
                known = change.publish(version)
            if known.features:
                with self._lock:
                    self._features[known.digest] = known.features
            if self.store is not None:
                self.store.release(version.digest)
        return known

    def version(self, digest: str) -> Version:
        """Raises ``UnknownVersion``."""
        check_digest(digest)
        with self._tables() as tables:
            version = tables.version(digest)
        if version is None:
            raise UnknownVersion(f"version {digest[:12]} was never published, or was collected")
        return version

    def bases(self) -> dict[str, str]:
        """The base of every version, by digest; empty where it is unknown."""
        with self._tables() as tables:
            return tables.bases()

    def features(self, digest: str) -> tuple[str, ...]:
        """What a version has beside LoRA on the decoder's linears; from memory."""
        with self._lock:
            return self._features.get(digest, ())

    def versions(self, name: str) -> tuple[Version, ...]:
        """What ``name`` can go to at once, the one used last first. Raises ``UnknownName``."""
        with self._tables() as tables:
            found = [tables.version(digest) for digest in self.entry(name).kept]
        return tuple(version for version in found if version is not None)

    def candidates(self) -> tuple[str, ...]:
        """Digests that were published and not taken by a name yet, the oldest first."""
        with self._tables() as tables:
            return tuple(tables.candidates())

    def retire(self, digest: str) -> None:
        """Have no name keep the version any more, so that ``collect`` removes it.

        Raises ``UnknownVersion``; ``VersionInUse`` while a name or a canary points at it.
        """
        with self._change("retire") as change:
            change.retire(digest)

    def point(
        self,
        name: str,
        digest: str,
        *,
        if_match: str | None = None,
        activate: bool = True,
        tenant: str | None = None,
    ) -> AdapterEntry:
        """Swap: new requests on ``name`` get ``digest``, running ones keep what they hold.

        A new name is made, for ``tenant``; an old one must be its own, unless that is None.
        ``activate=False`` only adds the version to those that an existing name
        keeps. ``if_match`` is the digest that the name must point at: ``PreconditionFailed``
        otherwise. Raises ``InvalidName``, ``UnknownName``, ``UnknownVersion``, ``ForeignName``.
        """
        check_name(name, self._reserved)
        with self._change("point") as change:
            if activate:
                change.point(name, digest, if_match=if_match, tenant=tenant)
            else:
                change.keep(name, digest, if_match=if_match, tenant=tenant)
            return change.require(name)

    def rollback(
        self, name: str, digest: str | None = None, *, if_match: str | None = None
    ) -> AdapterEntry:
        """Go back to the version that was active before, or to ``digest`` if the name keeps it.

        Each call without a digest goes one further back; a version that was rolled back from is
        kept, but no later rollback comes to it by itself. Raises ``UnknownName``,
        ``UnknownVersion``, ``PreconditionFailed``.
        """
        with self._change("rollback") as change:
            change.rollback(name, digest, if_match=if_match)
            return change.require(name)

    def delete(self, name: str, *, if_match: str | None = None) -> None:
        """Forget a name; running requests finish, its history stays.

        Raises ``UnknownName``, ``PreconditionFailed``.
        """
        with self._change("delete") as change:
            change.delete(name, if_match=if_match)

    def pin(self, name: str) -> AdapterEntry:
        """Ask for the name's version to stay in device memory. Raises ``UnknownName``."""
        with self._change("pin") as change:
            change.set_pinned(name, True)
            return change.require(name)

    def unpin(self, name: str) -> AdapterEntry:
        """Undo ``pin``. Raises ``UnknownName``."""
        with self._change("unpin") as change:
            change.set_pinned(name, False)
            return change.require(name)

    def set_canary(self, name: str, digest: str, weight: float) -> AdapterEntry:
        """Give a published version the share ``weight``, in (0, 1], of the name's new requests.

        Another weight for the running canary keeps the users that it has. Raises ``UnknownName``,
        ``UnknownVersion``, ``InvalidCanary``.
        """
        with self._change("set_canary") as change:
            change.set_canary(name, digest, weight)
            return change.require(name)

    def clear_canary(
        self, name: str, *, if_canary: str | None = None, evidence: Evidence = None
    ) -> AdapterEntry:
        """End the canary, if there is one; the name keeps its version.

        ``if_canary`` is the digest that the canary must have. Raises ``UnknownName``,
        ``PreconditionFailed``.
        """
        with self._change("clear_canary") as change:
            change.clear_canary(name, if_canary=if_canary, evidence=evidence)
            return change.require(name)

    def promote(
        self,
        name: str,
        *,
        if_match: str | None = None,
        if_canary: str | None = None,
        evidence: Evidence = None,
    ) -> AdapterEntry:
        """Make the canary the active version; ``evidence`` is kept in the history.

        Raises ``UnknownName``, ``InvalidCanary`` if there is none, ``PreconditionFailed``.
        """
        with self._change("promote") as change:
            change.promote(name, if_match=if_match, if_canary=if_canary, evidence=evidence)
            return change.require(name)

    def history(
        self, name: str, *, limit: int = 100, view: str | None = None
    ) -> tuple[HistoryEvent, ...]:
        """The last events of a name, also of a deleted one, the latest first."""
        with self._tables() as tables:
            return tuple(tables.history(name, limit, view))

    def collect(self) -> tuple[str, ...]:
        """Remove versions that no name keeps and no request holds; returns their digests.

        Also deletes bytes that no version vouches for, left by a crash or an abandoned import.
        Rows go first, durably: a crash in between leaves bytes without a row, which the next call
        finds, and never a row without its bytes.
        """
        with self.database.lock:
            with self._change("collect") as change:
                digests = change.collect(self.leases_by_digest())
            with self._lock:
                for digest in digests:
                    self._features.pop(digest, None)
            if self.store is not None:
                self._remove_orphans(self.store)
        if self.store is not None:
            self.store.sweep()
        reach("collect.7")
        return digests

    def _remove_orphans(self, store: AdapterStore) -> None:
        with self._tables() as tables:
            known = tables.digests()
        for digest in store.digests():
            if digest not in known and store.remove(digest):
                reach("collect.5")

    def _report_missing(self) -> None:
        if self.store is None:
            return
        with self._tables() as tables:
            for digest in sorted(tables.digests()):
                if digest not in self.store:
                    logger.error("version %s has lost its bytes; import it again", digest[:12])

    @contextmanager
    def _tables(self) -> Iterator[RegistryTables]:
        with self.database.reading() as connection:
            yield RegistryTables(connection)

    @contextmanager
    def _change(self, operation: str) -> Iterator[Change]:
        """A transaction, and the mirror's update before any later change can begin."""
        with self.database.lock:
            with self.database.transaction() as connection:
                reach(f"{operation}.1")
                change = Change(connection, now=int(self._clock()), keep_last=self._keep_last)
                yield change
                entries = change.touched_entries()
                reach(f"{operation}.2")
            reach(f"{operation}.3")
            self._mirror(entries)
            reach(f"{operation}.4")

    def _mirror(self, entries: Mapping[str, AdapterEntry | None]) -> None:
        with self._lock:
            for name, entry in entries.items():
                if entry is None:
                    self._entries.pop(name, None)
                    self._draws.pop(name, None)
                else:
                    self._entries[name] = entry
