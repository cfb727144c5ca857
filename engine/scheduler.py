"""Which requests run in the next step, and how many tokens each. Pure Python; imports no torch.

Running requests come first, in the order of their admission: one token each for those that decode,
then prefill chunks within the token budget. When blocks run out, the request admitted last gives
its blocks back and is recomputed later; the one admitted first always advances, so nobody is
starved by preemption. Requests with a higher priority number stand behind all others throughout:
they are admitted when nobody else waits, and set back for whoever needs their place.

A client that has got no turn for ``starvation_steps`` goes before everybody else. If there is no
room, one request per step of the client that has most of them running is set back for it, as long
as that client keeps more than the waiting one has.
"""

from bisect import insort
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.slots import Readiness

from .active_request import ActiveRequest, finish_reason
from .config import SchedulerConfig
from .fairness import FairQueue, Turns
from .kv_blocks import BlockPool
from .request import FinishReason, GenerationRequest
from .step_budget import StepBudget


class AdapterMemory(Protocol):
    """What the scheduler needs of the versions in device memory."""

    def prefetch(self, groups: Iterable[Sequence[str]]) -> None:
        """Take note of what the waiting requests need, the next to be admitted first."""
        ...

    def prepare(self, digests: Iterable[str], *, is_blend: bool = False) -> Readiness:
        """Whether all are resident; starts what is missing.

        Raises ``AdapterRejected``, also for versions that cannot take part in a blend.
        """
        ...

    def lease(self, digests: Iterable[str]) -> None: ...

    def release(self, digests: Iterable[str]) -> None: ...

    def call_in(self, *, keep: Sequence[str] = ()) -> bool:
        """Have some blocks back that were lent to an idle version outside ``keep``, if any were."""
        ...


@dataclass(frozen=True, slots=True)
class ScheduledRequest:
    """Tokens ``[start, start + count)`` of one request.

    ``samples`` if its last is among them and another is wanted.
    """

    request: ActiveRequest
    start: int
    count: int
    samples: bool

    @property
    def scored(self) -> range:
        """Positions whose logits tell how likely the prompt's next token was."""
        return self.request.unscored(self.start, self.start + self.count)

    @property
    def pools(self) -> bool:
        """Whether the hidden state of its last token is wanted."""
        request = self.request
        is_last = self.start + self.count == request.num_prompt
        return request.request.wants_embedding and is_last

    @property
    def num_logits(self) -> int:
        """Rows of logits: those of scored positions, then that of the drawn token."""
        return len(self.scored) + self.samples


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one forward pass does. ``fresh_blocks`` hold stale data and must be zeroed first."""

    items: tuple[ScheduledRequest, ...]
    fresh_blocks: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        return sum(item.count for item in self.items)


@dataclass(frozen=True, slots=True)
class Rejection:
    """A waiting request that can never run."""

    request: ActiveRequest
    error: AdapterRejected


class Scheduler:
    """Owns every request from submission to its end."""

    def __init__(self, config: SchedulerConfig, pool: BlockPool, memory: AdapterMemory) -> None:
        self._config = config
        self._pool = pool
        self._memory = memory
        self._waiting = FairQueue()
        self._running: list[ActiveRequest] = []
        self._requests: dict[str, ActiveRequest] = {}
        self._fresh_blocks: list[int] = []
        self.is_brief = False
        self._rejections: list[Rejection] = []
        self._step = 0
        self._arrivals = 0
        self._last_preemption = 0
        self._lacks_room: ActiveRequest | None = None
        self.num_preemptions = 0

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def requests(self) -> Iterable[ActiveRequest]:
        """All of them, in the order of arrival; one that runs holds blocks."""
        return self._requests.values()

    @property
    def has_requests(self) -> bool:
        return bool(self._requests)

    @property
    def awaits_first_token(self) -> bool:
        """Whether a request is queued, or its prompt is not done."""
        return bool(self._waiting) or any(not r.num_generated for r in self._running)

    @property
    def is_full(self) -> bool:
        return len(self._waiting) >= self._config.max_queued_requests

    def get(self, request_id: str) -> ActiveRequest | None:
        return self._requests.get(request_id)

    def submit(self, request: GenerationRequest) -> ActiveRequest:
        """Queue a request that fits the context window; its id must be new."""
        assert request.id not in self._requests
        active = ActiveRequest(request, self._arrivals)
        self._arrivals += 1
        active.waiting_since = self._step
        self._requests[request.id] = active
        self._waiting.add(active)
        return active

    def finish(self, request: ActiveRequest) -> None:
        """End a request wherever it is, and free everything it holds."""
        del self._requests[request.id]
        if request in self._running:
            self._running.remove(request)
            self._free(request)
        else:
            self._waiting.remove(request)

    def take_rejections(self) -> list[Rejection]:
        """Waiting requests whose adapter could not be loaded; already removed."""
        rejections, self._rejections = self._rejections, []
        for rejection in rejections:
            self.finish(rejection.request)
        return rejections

    def schedule(self, *, is_late: bool = False) -> StepPlan:
        """Plan one step; the plan is empty if nothing can run yet.

        If ``is_late``, those that decode have waited already: prompts do for one step.
        """
        self._step += 1
        self._fresh_blocks = []
        self._make_room()
        num_decoding = sum(request.num_pending == 1 for request in self._running)
        self.is_brief = is_late and num_decoding > 0 and not self.is_brief
        num_tokens = num_decoding if self.is_brief else self._config.max_batched_tokens
        budget = StepBudget(num_tokens, self._config.max_num_requests)
        counts: dict[str, int] = {}
        for request in self._by_phase():
            count = budget.offer(request)
            if count and request in self._running and self._reserve(request, count, counts):
                counts[request.id] = count
                budget.take(request, count)
        heads = self._by_turn()
        self._memory.prefetch([request.digests for request in heads if request.digests])
        if self._step != self._last_preemption:
            self._admit(heads, budget, counts)
        return self._plan(counts)

    def _make_room(self) -> None:
        """Set back a less important request, or one of the largest client for one that starves."""
        starving, self._lacks_room = self._lacks_room, None
        if starving is None or starving.id not in self._requests or not self._running:
            return
        if self._outranks_last(starving):
            self._set_back(self._running[-1])
            return
        equals = [r for r in self._running if r.request.priority >= starving.request.priority]
        running = Counter(request.client for request in equals)
        client, num_running = max(running.items(), key=lambda item: item[1], default=("", 0))
        # With less than two more, they would take the room from each other in turn.
        if num_running >= running[starving.client] + 2:
            self._set_back(next(r for r in reversed(equals) if r.client == client))

    def _outranks_last(self, request: ActiveRequest) -> bool:
        return request.request.priority < self._running[-1].request.priority

    def _by_phase(self) -> list[ActiveRequest]:
        """Decoding requests before prefilling ones; each in the order of admission."""
        return sorted(self._running, key=lambda request: request.num_pending > 1)

    def _reserve(self, request: ActiveRequest, count: int, counts: dict[str, int]) -> bool:
        """Give ``request`` blocks for ``count`` more tokens, preempting later ones if need be."""
        needed = self._missing_blocks(request, count)
        while not self._find_blocks(needed):
            victim = self._running[-1]
            self._preempt(victim)
            counts.pop(victim.id, None)
            if victim is request:
                return False
        self._grow(request, needed)
        return True

    def _find_blocks(self, needed: int, *, keep: Sequence[str] = ()) -> bool:
        """Whether so many blocks are free, once what was lent is called in for them."""
        while needed > self._pool.num_free:
            if not self._memory.call_in(keep=keep):
                return False
        return True

    def _missing_blocks(self, request: ActiveRequest, count: int) -> int:
        return self._blocks_for(request.num_computed + count) - len(request.blocks)

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self._pool.block_size)

    def _grow(self, request: ActiveRequest, num_blocks: int) -> None:
        if num_blocks > 0:
            blocks = self._pool.allocate(num_blocks)
            assert blocks is not None
            request.blocks += blocks
            self._fresh_blocks += blocks

    def _preempt(self, request: ActiveRequest) -> None:
        self._set_back(request)
        self._last_preemption = self._step

    def _set_back(self, request: ActiveRequest) -> None:
        self._running.remove(request)
        self._free(request)
        request.num_computed = 0
        request.waiting_since = self._step
        self._waiting.add(request, first=True)
        self.num_preemptions += 1

    def _free(self, request: ActiveRequest) -> None:
        freed = set(request.blocks)
        self._fresh_blocks = [block for block in self._fresh_blocks if block not in freed]
        self._pool.release(request.blocks)
        request.hold([])
        self._memory.release(request.digests)

    def _by_turn(self) -> list[ActiveRequest]:
        """The head of every queue in the order of admission; a starving one goes first."""
        heads = self._waiting.candidates()
        first = min((request.request.priority for request in heads), default=0)
        starving = [r for r in heads if r.request.priority == first and self._is_starving(r)]
        if starving:
            # A client with requests running is being served, however long its others wait.
            running = self._num_running_by_client()
            age = self._waiting.passed_over_since
            first = min(starving, key=lambda r: (running[r.client], age(r), r.arrival))
            heads.remove(first)
            heads.insert(0, first)
        return heads

    def _num_running_by_client(self) -> Counter[Hashable]:
        return Counter(request.client for request in self._running)

    def _is_starving(self, request: ActiveRequest) -> bool:
        age = self._step - self._waiting.passed_over_since(request)
        return age > self._config.starvation_steps

    def _may_press(self, request: ActiveRequest, starving: ActiveRequest | None) -> bool:
        """Whether somebody is set back for a request that finds no room."""
        return request is starving or (bool(self._running) and self._outranks_last(request))

    def _admit(
        self, heads: list[ActiveRequest], budget: StepBudget, counts: dict[str, int]
    ) -> None:
        starving = heads[0] if heads and self._is_starving(heads[0]) else None
        blocked: dict[tuple[tuple[str, ...], bool], Readiness] = {}
        turns = Turns(self._waiting, heads, first=starving)
        while budget.num_tokens > 0 and (request := turns.next()):
            if not budget.has_room(request):
                continue
            if len(self._running) >= self._config.max_num_requests:
                self._lacks_room = request if self._may_press(request, starving) else None
                return
            key = request.digests, request.is_blend
            readiness = blocked.get(key) or self._prepare(request)
            if readiness is not Readiness.READY:
                blocked[key] = readiness
                if request is starving and readiness is Readiness.NO_ROOM:
                    # Whoever is admitted before it would keep the room occupied.
                    return
                continue
            if not self._place(request):
                self._lacks_room = request if self._may_press(request, starving) else None
                return
            count = budget.offer(request)
            self._grow(request, self._missing_blocks(request, count))
            counts[request.id] = count
            budget.take(request, count)
            turns.put_next(request)

    def _prepare(self, request: ActiveRequest) -> Readiness:
        try:
            return self._memory.prepare(request.digests, is_blend=request.is_blend)
        except AdapterRejected as error:
            key = request.digests, request.is_blend
            same = (other for other in self._waiting if (other.digests, other.is_blend) == key)
            self._rejections += [Rejection(other, error) for other in same]
            return Readiness.LOADING

    def _place(self, request: ActiveRequest) -> bool:
        """Move a waiting request to the running ones if all its tokens so far have room."""
        cached = self._cached_blocks(request)
        needed = self._blocks_for(len(request.tokens)) - len(cached)
        self._pool.share(cached)
        if not self._find_blocks(needed, keep=request.digests):
            self._pool.release(cached)
            return False
        request.hold(cached)
        request.num_computed = len(cached) * self._pool.block_size
        if request.num_cached is None:
            request.num_cached = request.num_computed
            # Charged before it is computed, or one client's backlog would fill a whole step.
            self._waiting.charge(request, request.num_pending)
        self._memory.lease(request.digests)
        self._waiting.remove(request)
        self._waiting.note_turn(request, self._step)
        insort(self._running, request, key=lambda running: running.request.priority)
        return True

    def _cached_blocks(self, request: ActiveRequest) -> list[int]:
        """Blocks of the longest cached prefix that leaves at least one token to compute."""
        block_size = self._pool.block_size
        usable = request.num_reusable // block_size
        return self._pool.match(request.full_block_keys(block_size)[:usable])

    def _plan(self, counts: dict[str, int]) -> StepPlan:
        items = [
            ScheduledRequest(
                request,
                request.num_computed,
                counts[request.id],
                samples=counts[request.id] == request.num_pending
                and request.request.sampling.max_tokens > 0,
            )
            for request in self._running
            if request.id in counts
        ]
        # Rows of one version lie side by side, so that segments are few; the base comes last.
        items.sort(key=lambda item: _segment_key(item.request))
        return StepPlan(tuple(items), tuple(self._fresh_blocks))

    def commit(self, item: ScheduledRequest, token: int | None) -> FinishReason | None:
        """Take in the result of one planned item; returns why the request ends, if it does."""
        request = item.request
        request.advance(item.count)
        if token is not None:
            request.tokens.append(token)
            self._waiting.charge(request, 1)
        self._register_blocks(request, item.start)
        return finish_reason(request, token)

    def _register_blocks(self, request: ActiveRequest, start: int) -> None:
        block_size = self._pool.block_size
        keys = request.full_block_keys(block_size)
        for index in range(start // block_size, request.num_computed // block_size):
            self._pool.register(request.blocks[index], keys[index])


def _segment_key(request: ActiveRequest) -> tuple[bool, tuple[tuple[str, float], ...]]:
    shares = request.request.adapters
    return (not shares, tuple((share.digest, share.weight) for share in shares))
