"""How much work is done per second, counted over the seconds in which there was any."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_MEMORY_SECONDS: Final = 10.0


class Throughput:
    """A decaying mean over the last 10 busy seconds; idle time stands still."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._num_busy = 0
        self._looked = 0.0
        self._work = 0.0
        self._seconds = 0.0

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Time counts while at least one of these is held."""
        self._advance()
        self._num_busy += 1
        try:
            yield
        finally:
            self._advance()
            self._num_busy -= 1

    def add(self, work: float) -> None:
        self._advance()
        self._work += work

    def per_second(self) -> float | None:
        """None before any work was done."""
        self._advance()
        return self._work / self._seconds if self._work and self._seconds else None

    def _advance(self) -> None:
        now = self._clock()
        if self._num_busy:
            # Work and seconds fade alike, so that their ratio is a weighted mean from the start.
            fade = math.exp(-(now - self._looked) / _MEMORY_SECONDS)
            self._work *= fade
            self._seconds = self._seconds * fade + _MEMORY_SECONDS * (1 - fade)
        self._looked = now
