"""Who is counted under which name.

Every adapter has a tally of its own for the page that is read seldom. The page that is read often
shows those with most requests by name, and all others as one. What was counted under a label stays
there: a label never takes over another's past, so rates stay true when the first places change.
"""

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Final

from .tally import Tally, TotalTally

OTHER: Final = "other"
_NUM_SEATS: Final = 16
_MAX_NAMES: Final = 8192
_RESEAT_SECONDS: Final = 30.0
# Of the heat of requests after each round: half of it is about the last minute's.
_COOLING: Final = 0.5
# So many times as hot as the coldest holder of a seat must be who takes it.
_LEAD: Final = 2.0


@dataclass(frozen=True, slots=True)
class Entries:
    """The tallies that one request is counted in, the one of all among them."""

    tallies: tuple[Tally, ...]
    total: TotalTally

    def __iter__(self) -> Iterator[Tally]:
        return iter(self.tallies)


class Board:
    """All tallies of one server; ``base`` always has a label of its own."""

    def __init__(
        self,
        base: str,
        *,
        num_seats: int = _NUM_SEATS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.base = base
        self.total = TotalTally()
        self.adapters: dict[str, Tally] = {}
        self._base = Tally()
        self._other = Tally()
        self._seats: dict[str, Tally] = {}
        self._num_seats = num_seats
        self._heat: dict[str, float] = {}
        self._clock = clock
        self._reseated = clock()

    def of(self, name: str) -> Entries:
        """Where the next request of a resolved ``name`` is counted."""
        if name == self.base:
            return Entries((self._base, self.total), self.total)
        own = self.adapters.get(name)
        if own is None:
            self._forget_the_oldest()
            own = self.adapters[name] = Tally()
        self._heat[name] = self._heat.get(name, 0.0) + 1
        if self._clock() - self._reseated >= _RESEAT_SECONDS:
            self._reseat()
        return Entries((own, self._seat(name), self.total), self.total)

    def shown(self) -> dict[str, Tally]:
        """By label: the base, the seats, and all others if there are any."""
        others = {OTHER: self._other} if self._other.outcomes else {}
        return {self.base: self._base, **self._seats, **others}

    def keep_only(self, names: Collection[str]) -> None:
        """Forget adapters that are no more."""
        for name in [name for name in list(self.adapters) if name not in names]:
            self.adapters.pop(name, None)

    def _seat(self, name: str) -> Tally:
        if name not in self._seats and len(self._seats) < self._num_seats:
            self._seats[name] = Tally()
        return self._seats.get(name, self._other)

    def _reseat(self) -> None:
        self._reseated = self._clock()
        hottest = sorted(self._heat, key=self._heat.__getitem__, reverse=True)
        for name in hottest[: self._num_seats]:
            if name in self._seats or len(self._seats) < self._num_seats:
                continue
            coldest = min(self._seats, key=lambda seated: self._heat.get(seated, 0.0))
            if self._heat[name] <= _LEAD * self._heat.get(coldest, 0.0):
                break
            del self._seats[coldest]
            self._seats[name] = Tally()
        self._heat = {n: heat * _COOLING for n, heat in self._heat.items() if heat > 0.01}

    def _forget_the_oldest(self) -> None:
        if len(self.adapters) >= _MAX_NAMES:
            oldest = sorted(self.adapters, key=lambda name: self.adapters[name].last_used)
            for name in oldest[: _MAX_NAMES // 8]:
                del self.adapters[name]
