"""How much of the requests' bodies is in memory, of all and of each key."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from .refusal import QueueFull

_RETRY_SECONDS: Final = 1.0


class HeldBodies:
    """Bounds bodies by the bytes of all of them; no key may have more than half of these.

    All methods belong to one event loop.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._by_key: Counter[str] = Counter()
        self.num_bytes = 0

    @contextmanager
    def body(self) -> Iterator[Callable[[int, str], None]]:
        """Hold while a request runs; what it is given takes in so many bytes for a key.

        A key is empty where none is asked for. That function raises ``QueueFull``.
        """
        taken: Counter[str] = Counter()

        def take(num_bytes: int, key: str) -> None:
            self._check(num_bytes, key)
            for counter in (self._by_key, taken):
                counter[key] += num_bytes
            self.num_bytes += num_bytes

        try:
            yield take
        finally:
            self.num_bytes -= taken.total()
            self._by_key -= taken

    def _check(self, num_bytes: int, key: str) -> None:
        is_greedy = bool(key) and 2 * (self._by_key[key] + num_bytes) > self._max_bytes
        if is_greedy or self.num_bytes + num_bytes > self._max_bytes:
            raise QueueFull(
                "too many large requests are in memory; try again later, or on another replica",
                retry_after_seconds=_RETRY_SECONDS,
            )
