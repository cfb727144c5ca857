"""Waiting requests, served in turn by adapter rather than by arrival.

Virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024): every
token processed for an adapter raises its counter, and the adapter with the lowest counter goes
next. A queue that becomes busy again starts no lower than the busiest minimum, so that idling earns
no credit.
"""

from collections import defaultdict, deque
from collections.abc import Iterator

from .active_request import ActiveRequest


class FairQueue:
    """First-in first-out within an adapter, lowest counter first between adapters."""

    def __init__(self) -> None:
        self._queues: dict[tuple[str, ...], deque[ActiveRequest]] = {}
        self._counters: defaultdict[tuple[str, ...], float] = defaultdict(float)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[ActiveRequest]:
        for queue in self._queues.values():
            yield from queue

    def add(self, request: ActiveRequest, *, first: bool = False) -> None:
        """Queue ``request``; ``first`` puts a preempted one ahead of its adapter's others."""
        key = request.fairness_key
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = deque()
            self._lift(key)
        (queue.appendleft if first else queue.append)(request)
        self._size += 1

    def remove(self, request: ActiveRequest) -> None:
        queue = self._queues[request.fairness_key]
        queue.remove(request)
        if not queue:
            del self._queues[request.fairness_key]
        self._size -= 1

    def charge(self, request: ActiveRequest, num_tokens: int) -> None:
        self._counters[request.fairness_key] += num_tokens

    def candidates(self) -> list[ActiveRequest]:
        """The head of every queue, the adapter with the lowest counter first."""
        heads = [queue[0] for queue in self._queues.values()]
        return sorted(heads, key=lambda r: (self._counters[r.fairness_key], r.arrival))

    def oldest(self) -> ActiveRequest | None:
        heads = (queue[0] for queue in self._queues.values())
        return min(heads, key=lambda request: request.waiting_since, default=None)

    def _lift(self, key: tuple[str, ...]) -> None:
        busy = [self._counters[other] for other in self._queues if other != key]
        if busy:
            self._counters[key] = max(self._counters[key], min(busy))
        else:
            self._counters.clear()
