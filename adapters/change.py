"""One transaction on the registry: the rules of what may follow what. Knows no lock, no lease."""

import sqlite3
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from .canary import Canary, check_weight
from .entry import AdapterEntry
from .error import (
    ForeignName,
    InvalidCanary,
    PreconditionFailed,
    UnknownName,
    UnknownVersion,
    VersionInUse,
)
from .registry_tables import RegistryTables
from .version import Version, check_digest


class Change:
    """Made inside a transaction; whatever raises here undoes all of it.

    ``now`` is a Unix time in seconds. ``if_match``, where it is not None, is the digest that the
    name must point at, ``if_canary`` that of its canary: ``PreconditionFailed`` otherwise.
    ``evidence`` is kept in the history.
    """

    def __init__(self, connection: sqlite3.Connection, *, now: int, keep_last: int) -> None:
        self._tables = RegistryTables(connection)
        self._now = now
        self._keep_last = keep_last
        self._touched: set[str] = set()

    def touched_entries(self) -> dict[str, AdapterEntry | None]:
        """Every name that was changed, as it is after the change; None for a deleted one."""
        return {name: self._tables.entry(name) for name in self._touched}

    def require(self, name: str, if_match: str | None = None) -> AdapterEntry:
        entry = self._tables.entry(name)
        _check_match(name, entry, if_match)
        if entry is None:
            raise UnknownName(name)
        return entry

    def publish(self, version: Version) -> Version:
        known = self._tables.version(version.digest)
        if known is None:
            self._tables.insert_version(version)
            return version
        if not self._tables.names_keeping(version.digest):
            self._tables.set_candidate(version.digest, True)
        if version.base and version.base != known.base:
            self._tables.set_base(version.digest, version.base)
            known = replace(known, base=version.base)
        return known

    def point(
        self, name: str, digest: str, *, if_match: str | None = None, tenant: str | None = None
    ) -> None:
        entry = self._tables.entry(name)
        _check_owner(name, entry, tenant)
        _check_match(name, entry, if_match)
        self._require_version(digest)
        if entry is None or entry.digest != digest:
            self._activate(entry, name, digest, "point", tenant=tenant or "")

    def keep(
        self, name: str, digest: str, *, if_match: str | None = None, tenant: str | None = None
    ) -> None:
        _check_owner(name, self._tables.entry(name), tenant)
        entry = self.require(name, if_match)
        self._require_version(digest)
        if digest not in entry.kept:
            event = self._record(name, "keep", end=digest)
            self._tables.keep(name, digest, event)
            self._trim(name, digest)

    def rollback(self, name: str, digest: str | None, *, if_match: str | None = None) -> None:
        entry = self.require(name, if_match)
        target = digest or self._tables.previous(name)
        if target is None:
            raise UnknownVersion(
                f"{name!r} keeps no version that was active before {entry.digest[:12]}; "
                "say which version to go to"
            )
        if target not in entry.kept:
            raise UnknownVersion(
                f"{name!r} does not keep version {target[:12]}, only "
                f"{', '.join(kept[:12] for kept in entry.kept)}; point the name at it instead"
            )
        if target != entry.digest:
            self._activate(entry, name, target, "rollback")

    def promote(
        self,
        name: str,
        *,
        if_match: str | None = None,
        if_canary: str | None = None,
        evidence: Mapping[str, Any] | None = None,
    ) -> None:
        entry = self.require(name, if_match)
        if entry.canary is None:
            raise InvalidCanary(f"{name!r} has no canary to promote; point the name at a version")
        _check_canary(entry, if_canary)
        self._activate(entry, name, entry.canary.digest, "promote", evidence=evidence)

    def delete(self, name: str, *, if_match: str | None = None) -> None:
        entry = self.require(name, if_match)
        self._record(name, "delete", start=entry.digest)
        self._tables.delete_name(name)

    def set_pinned(self, name: str, is_pinned: bool) -> None:
        if self.require(name).is_pinned != is_pinned:
            self._record(name, "pin" if is_pinned else "unpin")
            self._tables.set_pinned(name, is_pinned)

    def set_canary(self, name: str, digest: str, weight: float) -> None:
        check_weight(weight)
        entry = self.require(name)
        self._require_version(digest)
        if digest == entry.digest:
            raise InvalidCanary(
                f"version {digest[:12]} already answers every request of {name!r}; a canary is "
                "another version"
            )
        old = entry.canary
        if old == Canary(old.id if old else 0, digest, weight):
            return
        start = old.digest if old else None
        event = self._record(name, "set_canary", start=start, end=digest, weight=weight)
        is_same = old is not None and old.digest == digest
        self._tables.keep(name, digest, event)
        self._tables.set_canary(name, Canary(old.id if old and is_same else event, digest, weight))
        self._trim(name, digest)

    def clear_canary(
        self,
        name: str,
        *,
        if_canary: str | None = None,
        evidence: Mapping[str, Any] | None = None,
    ) -> None:
        entry = self.require(name)
        _check_canary(entry, if_canary)
        canary = entry.canary
        if canary is not None:
            self._record(name, "clear_canary", start=canary.digest, evidence=evidence)
            self._tables.clear_canary(name)
            self._trim(name, canary.digest)

    def retire(self, digest: str) -> None:
        self._require_version(digest)
        names = self._tables.names_keeping(digest)
        for name in names:
            if digest in self.require(name).in_use:
                raise VersionInUse(
                    f"version {digest[:12]} answers requests of {name!r}; point the name "
                    "elsewhere or end its canary first"
                )
        for name in names:
            self._record(name, "retire", start=digest)
            self._tables.drop(name, digest)
        self._tables.set_candidate(digest, False)

    def collect(self, leased: Collection[str]) -> tuple[str, ...]:
        """Forget the versions that no name keeps; returns them."""
        digests = tuple(digest for digest in self._tables.unkept() if digest not in leased)
        self._tables.delete_versions(digests)
        return digests

    def _activate(
        self,
        entry: AdapterEntry | None,
        name: str,
        digest: str,
        action: str,
        *,
        evidence: Mapping[str, Any] | None = None,
        tenant: str = "",
    ) -> None:
        start = entry.digest if entry else None
        owner = None if entry else tenant
        event = self._record(name, action, start=start, end=digest, evidence=evidence, tenant=owner)
        self._tables.set_active(name, digest, self._now, tenant)
        self._tables.keep(name, digest, event)
        if action != "rollback" or not self._tables.pop_to(name, digest):
            self._tables.push(name, digest, event)
        if entry and entry.canary and entry.canary.digest == digest:
            self._tables.clear_canary(name)
        self._trim(name, digest)

    def _trim(self, name: str, latest: str) -> None:
        """Let go of the versions used longest ago; never of one in use or just named."""
        entry = self.require(name)
        spared = entry.in_use | {latest}
        others = [digest for digest in entry.kept if digest not in spared]
        for digest in others[max(self._keep_last - len(spared), 0) :]:
            self._tables.drop(name, digest)

    def _require_version(self, digest: str) -> None:
        check_digest(digest)
        if self._tables.version(digest) is None:
            raise UnknownVersion(f"version {digest[:12]} was never published, or was collected")

    def _record(
        self,
        name: str,
        action: str,
        *,
        start: str | None = None,
        end: str | None = None,
        weight: float | None = None,
        tenant: str | None = None,
        evidence: Mapping[str, Any] | None = None,
    ) -> int:
        """``tenant`` None is the name's own."""
        self._touched.add(name)
        if tenant is None:
            tenant = self.require(name).tenant
        return self._tables.record(
            *(name, action, self._now),
            start=start,
            end=end,
            weight=weight,
            evidence=evidence,
            tenant=tenant,
        )


def _check_owner(name: str, entry: AdapterEntry | None, tenant: str | None) -> None:
    if entry is not None and tenant not in (None, entry.tenant):
        raise ForeignName(name)


def _check_match(name: str, entry: AdapterEntry | None, if_match: str | None) -> None:
    if if_match is None or (entry is not None and entry.digest == if_match):
        return
    found = f"points at {entry.digest[:12]}" if entry else "does not exist"
    raise PreconditionFailed(
        f"{name!r} {found}, not at {if_match[:12]} as expected; read it again, then decide"
    )


def _check_canary(entry: AdapterEntry, if_canary: str | None) -> None:
    found = entry.canary.digest if entry.canary else None
    if if_canary not in (None, found):
        raise PreconditionFailed(
            f"the canary of {entry.name!r} is {found[:12] if found else 'over'}, not "
            f"{if_canary[:12]} as expected; read the adapter again, then decide"
        )
