"""A bounded sample of everything that an adapter was ever taught, to be repeated later.

Every row has a priority, a hash of (seed, key). A stratum holds exactly those of its rows whose
priority is below its threshold, and a row that leaves for want of room lowers the threshold to its
own priority. So a stratum is a uniform sample of all rows that were added and not erased, whatever
the order, and a row that is added again after it was dropped does not come back. Rows are dropped
from the largest stratum: a stratum that is small stays whole.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self, TypeAlias

_RANGE: Final = 1 << 63
Stratum: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRow:
    """``key`` names the row for good, for example by its question; ``fields`` are those of a
    training file's row. ``source`` and ``task`` are its stratum. ``feedback``, ``tenant``, ``user``
    and ``created``, a Unix time, say what it was made of, so that it can be erased.
    """

    key: str
    source: str = ""
    task: str = ""
    feedback: str = ""
    tenant: str = ""
    user: str | None = None
    created: int = 0
    fields: Mapping[str, Any]

    @property
    def stratum(self) -> Stratum:
        return self.source, self.task


@dataclass(slots=True)
class _Held:
    threshold: int = _RANGE
    rows: dict[str, ReplayRow] = field(default_factory=dict)


class Reservoir:
    """At most ``capacity`` rows, stratified by (source, task); every draw follows from ``seed``."""

    def __init__(self, capacity: int, *, seed: int = 0) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; it must be at least 1")
        self.capacity = capacity
        self.seed = seed
        self._strata: dict[Stratum, _Held] = {}

    @classmethod
    def restored(
        cls,
        capacity: int,
        rows: Iterable[ReplayRow],
        thresholds: Mapping[Stratum, int],
        *,
        seed: int = 0,
    ) -> Self:
        """One that goes on where ``rows`` and ``thresholds`` are from, with another capacity."""
        found = cls(capacity, seed=seed)
        found._strata = {name: _Held(threshold) for name, threshold in thresholds.items()}
        found.add(rows)
        return found

    def __len__(self) -> int:
        return sum(len(stratum.rows) for stratum in self._strata.values())

    def __iter__(self) -> Iterator[ReplayRow]:
        """All rows in the order of their priorities, which mixes the strata."""
        rows = (row for stratum in self._strata.values() for row in stratum.rows.values())
        return iter(sorted(rows, key=lambda row: (self._priority(row.key), row.stratum)))

    @property
    def thresholds(self) -> dict[Stratum, int]:
        """Of strata that lost rows for want of room; others hold all that were added."""
        strata = self._strata.items()
        return {name: one.threshold for name, one in strata if one.threshold < _RANGE}

    def sizes(self) -> dict[Stratum, int]:
        """Rows by stratum."""
        return {name: len(stratum.rows) for name, stratum in self._strata.items() if stratum.rows}

    def add(self, rows: Iterable[ReplayRow]) -> None:
        """Offer rows; one with the key and stratum of a row that is held replaces it."""
        for row in rows:
            stratum = self._strata.setdefault(row.stratum, _Held())
            if self._priority(row.key) < stratum.threshold:
                stratum.rows[row.key] = row
                while len(self) > self.capacity:
                    self._drop()

    def erase(self, is_gone: Callable[[ReplayRow], bool]) -> int:
        """Remove rows for good; returns how many were held."""
        num_erased = 0
        for stratum in self._strata.values():
            kept = {key: row for key, row in stratum.rows.items() if not is_gone(row)}
            num_erased += len(stratum.rows) - len(kept)
            stratum.rows = kept
        return num_erased

    def _drop(self) -> None:
        """Remove the row of the highest priority from the largest stratum, the first of several."""
        name = max(sorted(self._strata), key=lambda name: len(self._strata[name].rows))
        stratum = self._strata[name]
        key = max(stratum.rows, key=self._priority)
        stratum.threshold = self._priority(key)
        del stratum.rows[key]

    def _priority(self, key: str) -> int:
        digest = hashlib.blake2b(f"{self.seed}/{key}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1
