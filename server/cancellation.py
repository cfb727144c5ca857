"""The end of one merge that somebody asked for, from any thread."""

import threading

from multiflora.adapters.merging.child import MergeChild


class Cancelled(Exception):
    """The merge was cancelled, and nothing was published."""


class Cancellation:
    """Either the merge is cancelled or its result is published: whichever asks first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: MergeChild | None = None
        self._is_set = False
        self._is_sealed = False

    def set(self) -> bool:
        """End the merge, begun or not; whether it was not too late."""
        with self._lock:
            if self._is_sealed:
                return False
            self._is_set = True
            if self._child is not None:
                self._child.kill()
            return True

    def watch(self, child: MergeChild) -> None:
        """Have ``child`` end with the merge. Raises ``Cancelled``."""
        with self._lock:
            self._raise()
            self._child = child

    def check(self) -> None:
        """Raises ``Cancelled``."""
        with self._lock:
            self._raise()

    def seal(self) -> None:
        """From here on the merge ends by itself. Raises ``Cancelled``."""
        with self._lock:
            self._raise()
            self._is_sealed = True

    def _raise(self) -> None:
        if self._is_set:
            raise Cancelled
