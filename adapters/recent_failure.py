"""Versions that could not be read a moment ago: not read again for every request of a flood."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .error import AdapterRejected

_RETRY_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Failure:
    error: AdapterRejected
    at_seconds: float


class RecentFailures:
    """Why versions failed, each for a second by ``clock``."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures: dict[str, _Failure] = {}

    def add(self, digest: str, error: AdapterRejected) -> None:
        for other in tuple(self._failures):
            self.find(other)
        self._failures[digest] = _Failure(error, self._clock())

    def find(self, digest: str) -> AdapterRejected | None:
        """Why ``digest`` is not read again yet; an old failure is forgotten."""
        failure = self._failures.get(digest)
        if failure and self._clock() - failure.at_seconds >= _RETRY_SECONDS:
            self.forget(digest)
            return None
        return failure.error if failure else None

    def forget(self, digest: str) -> None:
        self._failures.pop(digest, None)
