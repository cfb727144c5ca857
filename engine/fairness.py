"""Waiting requests, served in turn by client rather than by arrival.

Virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024): a
request's prompt is charged when it is admitted and each generated token when it comes, to its
versions and to its tenant, if it names one. The request whose larger counter is lowest goes next,
so neither one adapter of many tenants nor one tenant with many adapters takes more than a share.
Whoever becomes busy again starts no lower than the busiest minimum: idling earns no credit. Among
all that, a lower priority number goes first.
"""

import heapq
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Final

from .active_request import ActiveRequest, QueueKey

_MAX_IDLE_COUNTERS: Final = 4096


class TokenCounters:
    """Tokens charged by key; only differences between busy keys mean anything."""

    def __init__(self) -> None:
        self._charged: dict[Hashable, float] = {}

    def __len__(self) -> int:
        return len(self._charged)

    def of(self, key: Hashable) -> float:
        return self._charged.get(key, 0.0)

    def charge(self, key: Hashable, num_tokens: int) -> None:
        self._charged[key] = self.of(key) + num_tokens

    def lift(self, key: Hashable, busy: Iterable[Hashable]) -> None:
        """Begin the busy time of ``key``, beside the other ``busy`` ones."""
        floor = min((self.of(other) for other in busy), default=None)
        if floor is None:
            self._charged.clear()
            return
        self._charged[key] = max(self.of(key), floor)
        if len(self._charged) > _MAX_IDLE_COUNTERS:
            # Whatever is not above the floor would be lifted to it anyway.
            self._charged = {k: value for k, value in self._charged.items() if value > floor}
            self._charged[key] = max(self.of(key), floor)


class FairQueue:
    """First-in first-out within versions and tenant, lowest counters first between them."""

    def __init__(self) -> None:
        self._queues: dict[QueueKey, deque[ActiveRequest]] = {}
        self._by_versions = TokenCounters()
        self._by_tenant = TokenCounters()
        self._last_turns: dict[Hashable, int] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[ActiveRequest]:
        for queue in self._queues.values():
            yield from queue

    def add(self, request: ActiveRequest, *, first: bool = False) -> None:
        """Queue ``request``; ``first`` puts a preempted one ahead of its queue's others."""
        key = request.queue_key
        queue = self._queues.get(key)
        if queue is None:
            self._lift(key)
            queue = self._queues[key] = deque()
        (queue.appendleft if first else queue.append)(request)
        self._size += 1

    def remove(self, request: ActiveRequest) -> None:
        queue = self._queues[request.queue_key]
        queue.remove(request)
        if not queue:
            del self._queues[request.queue_key]
        self._size -= 1

    def next_of(self, key: QueueKey) -> ActiveRequest | None:
        """The head of one queue."""
        queue = self._queues.get(key)
        return queue[0] if queue else None

    def charge(self, request: ActiveRequest, num_tokens: int) -> None:
        tenant, digests, _ = request.queue_key
        self._by_versions.charge(digests, num_tokens)
        if tenant:
            self._by_tenant.charge(tenant, num_tokens)

    def priority(self, request: ActiveRequest) -> tuple[int, float, int]:
        """Whose turn it is: the lowest goes next."""
        tenant, digests, priority = request.queue_key
        charged = self._by_versions.of(digests)
        if tenant:
            charged = max(charged, self._by_tenant.of(tenant))
        return priority, charged, request.arrival

    def candidates(self) -> list[ActiveRequest]:
        """The head of every queue in the order of their turns."""
        return sorted((queue[0] for queue in self._queues.values()), key=self.priority)

    def note_turn(self, request: ActiveRequest, step: int) -> None:
        """The client of ``request`` was served in ``step``: its others begin to age again."""
        self._last_turns[request.client] = step
        if len(self._last_turns) > _MAX_IDLE_COUNTERS:
            waiting = {other.client for other in self}
            self._last_turns = {c: s for c, s in self._last_turns.items() if c in waiting}

    def passed_over_since(self, request: ActiveRequest) -> int:
        """The step since which the client waits and gets no turn.

        A client with a long backlog is not starving while it gets its turns.
        """
        return max(request.waiting_since, self._last_turns.get(request.client, 0))

    def _lift(self, key: QueueKey) -> None:
        tenant, digests, _ = key
        self._by_versions.lift(digests, {d for _, d, _ in self._queues})
        if tenant:
            self._by_tenant.lift(tenant, {t for t, _, _ in self._queues if t})


class Turns:
    """Waiting requests in the order of their turns, while admissions change the counters."""

    def __init__(
        self, queue: FairQueue, heads: Sequence[ActiveRequest], *, first: ActiveRequest | None
    ) -> None:
        self._queue = queue
        self._first = first
        self._heap = [(queue.priority(head), head) for head in heads if head is not first]

    def next(self) -> ActiveRequest | None:
        """Take the next one; it is not looked at again in this step."""
        if self._first:
            first, self._first = self._first, None
            return first
        while self._heap:
            noted, request = self._heap[0]
            current = self._queue.priority(request)
            if current == noted:
                return heapq.heappop(self._heap)[1]
            # Counters only rise: what was noted is never too high.
            heapq.heapreplace(self._heap, (current, request))
        return None

    def put_next(self, admitted: ActiveRequest) -> None:
        """Let the queue of ``admitted`` have another turn."""
        following = self._queue.next_of(admitted.queue_key)
        if following:
            heapq.heappush(self._heap, (self._queue.priority(following), following))
