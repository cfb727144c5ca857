"""A bounded sample of everything that an adapter was ever taught, to be repeated later.

Every row has a priority, a hash of (seed, key). A stratum holds exactly those of its rows whose
priority is below its threshold, and a row that leaves for want of room lowers the threshold to its
own priority. So a stratum is a uniform sample of all rows that were added and not erased, whatever
the order, and a row that is added again after it was dropped does not come back. Rows are dropped
from the largest stratum: a stratum that is small stays whole.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from multiflora.adapters import durable

from ...errors import EngineError

_RANGE: Final = 1 << 63


class ReservoirDamaged(EngineError):
    """A file that is no reservoir."""

    code = "reservoir_damaged"


class ReplayRow(msgspec.Struct, frozen=True, kw_only=True):
    """``key`` names the row for good, for example by the completion that it was made of; ``fields``
    are those of a training file's row. ``source`` and ``task`` are its stratum."""

    key: str
    source: str = ""
    task: str = ""
    fields: dict[str, Any]

    @property
    def stratum(self) -> tuple[str, str]:
        return self.source, self.task


class _Stored(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of a file; the others are rows."""

    capacity: int
    seed: int
    thresholds: list[tuple[str, str, int]]


@dataclass(slots=True)
class _Stratum:
    threshold: int = _RANGE
    rows: dict[str, ReplayRow] = field(default_factory=dict)


class Reservoir:
    """At most ``capacity`` rows, stratified by (source, task); every draw follows from ``seed``."""

    def __init__(self, capacity: int, *, seed: int = 0) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; it must be at least 1")
        self.capacity = capacity
        self.seed = seed
        self._strata: dict[tuple[str, str], _Stratum] = {}

    def __len__(self) -> int:
        return sum(len(stratum.rows) for stratum in self._strata.values())

    def __iter__(self) -> Iterator[ReplayRow]:
        """All rows in the order of their priorities, which mixes the strata."""
        rows = (row for stratum in self._strata.values() for row in stratum.rows.values())
        return iter(sorted(rows, key=lambda row: (self._priority(row.key), row.stratum)))

    def sizes(self) -> dict[tuple[str, str], int]:
        """Rows by stratum."""
        return {name: len(stratum.rows) for name, stratum in self._strata.items() if stratum.rows}

    def add(self, rows: Iterable[ReplayRow]) -> None:
        """Offer rows; one with the key and stratum of a row that is held replaces it."""
        for row in rows:
            stratum = self._strata.setdefault(row.stratum, _Stratum())
            if self._priority(row.key) < stratum.threshold:
                stratum.rows[row.key] = row
        while len(self) > self.capacity:
            self._drop()

    def erase(self, keys: Iterable[str]) -> int:
        """Remove rows for good; returns how many were held. ``save`` writes a file without them."""
        wanted, num_erased = set(keys), 0
        for stratum in self._strata.values():
            for key in wanted & stratum.rows.keys():
                del stratum.rows[key]
                num_erased += 1
        return num_erased

    def training_file(self) -> bytes:
        """The rows as the lines of a training file."""
        return b"".join(msgspec.json.encode(row.fields) + b"\n" for row in self)

    def save(self, path: Path) -> None:
        """Replace the file, durably and as a whole. Raises ``OSError``."""
        thresholds = [(*name, stratum.threshold) for name, stratum in sorted(self._strata.items())]
        head = _Stored(capacity=self.capacity, seed=self.seed, thresholds=thresholds)
        lines = [msgspec.json.encode(head), *(msgspec.json.encode(row) for row in self)]
        durable.make_folder(path.parent)
        durable.replace(path, b"\n".join(lines) + b"\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises ``ReservoirDamaged`` and ``OSError``."""
        try:
            first, *lines = path.read_bytes().splitlines()
            head = msgspec.json.decode(first, type=_Stored)
            found = cls(head.capacity, seed=head.seed)
            for source, task, threshold in head.thresholds:
                found._strata[source, task] = _Stratum(threshold)
            for line in lines:
                row = msgspec.json.decode(line, type=ReplayRow)
                found._strata[row.stratum].rows[row.key] = row
        except (ValueError, KeyError) as error:
            raise ReservoirDamaged(
                f"{path} is damaged ({error}); remove it to begin with an empty one"
            ) from None
        return found

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
