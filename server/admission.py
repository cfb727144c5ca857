"""Lets in what can be answered in time, and turns the rest away at once, saying when to come back.

A request waits from its admission until its first token. What waits is bounded by sequences and by
prompt tokens, so memory does not grow with the number of clients, and the work of those that were
let in is never thrown away for those that come later.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Final

from .access.caller import Caller
from .rate_limit import Meter, Meters, RateLimits
from .refusal import QueueFull, RateLimited
from .throughput import Throughput

# Of a bound: from there on /ready says no, and below this yes again.
_SATURATED, _RELAXED = 0.8, 0.5
_UNKNOWN_WAIT_SECONDS: Final = 1.0
_LEAST_WAIT_SECONDS: Final = 0.1
_MOST_WAIT_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """``key`` is for keys without limits of their own, ``adapter`` for every name but the base."""

    max_queued_requests: int = 256
    max_queued_tokens: int = 500_000
    key: RateLimits = field(default_factory=RateLimits)
    adapter: RateLimits = field(default_factory=RateLimits)

    def __post_init__(self) -> None:
        for name in ("max_queued_requests", "max_queued_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One request as admission sees it.

    ``adapter`` is None for the base. ``num_tokens`` are those of all prompts and of the longest
    answers; ``timeout_seconds`` is how long the client waits, None is for ever.
    """

    caller: Caller
    adapter: str | None
    num_sequences: int
    num_prompt_tokens: int
    num_tokens: int
    timeout_seconds: float | None = None


class Ticket:
    """Held by an admitted request until it ends; ``begin`` at its first token."""

    def __init__(self, admission: "Admission", order: Order) -> None:
        self._admission = admission
        self.order = order
        self.is_waiting = True
        # Tokens of the answers as far as they came; what was not used is given back.
        self.num_answered: Callable[[], int] | None = None

    def begin(self) -> None:
        """Note that the request waits no more; the first time counts."""
        if self.is_waiting:
            self.is_waiting = False
            self._admission.leave_queue(self.order)


class Admission:
    """All methods belong to one event loop."""

    def __init__(
        self,
        limits: AdmissionLimits | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits or AdmissionLimits()
        self._clock = clock
        self._meters = Meters(clock)
        self._throughput = Throughput(clock)
        self._is_saturated = False
        self.num_waiting = 0
        self.num_waiting_tokens = 0
        self._waiting_cost = 0

    @contextmanager
    def admitted(self, order: Order) -> Iterator[Ticket]:
        """Hold while the request is answered.

        Raises ``QueueFull``, also if the wait would outlast the client's patience, and
        ``RateLimited``.
        """
        meters = self._meters_of(order.caller, order.adapter)
        self._check(order, meters)
        ticket = Ticket(self, order)
        with ExitStack() as held:
            for meter in meters:
                meter.begin(order.num_tokens, now=self._clock())
                held.callback(self._settle, meter, ticket)
            self._enter_queue(order)
            held.callback(ticket.begin)
            held.enter_context(self._throughput.busy())
            yield ticket
            self._throughput.add(order.num_tokens)

    @contextmanager
    def counted(self, caller: Caller) -> Iterator[None]:
        """Hold while ``caller`` is given something that needs no turn of the engine.

        It is one of the key's requests, without tokens. Raises ``RateLimited``.
        """
        meters = self._meters_of(caller, None)
        self._check_meters(meters, 0)
        with ExitStack() as held:
            for meter in meters:
                meter.begin(0, now=self._clock())
                held.callback(lambda meter=meter: meter.end(now=self._clock()))
            yield

    def check_room(self) -> None:
        """Refuse before a body is even tokenized. Raises ``QueueFull``."""
        if self.num_waiting >= self.limits.max_queued_requests:
            raise self._queue_full()

    def wait_seconds(self) -> float | None:
        """How long a new request would wait; None while nobody knows."""
        if not self._waiting_cost:
            return 0.0
        rate = self._throughput.per_second()
        return self._waiting_cost / rate if rate else None

    @property
    def is_saturated(self) -> bool:
        """Whether others should get new requests: before the queue is full, and until it is not."""
        fill = max(
            self.num_waiting / self.limits.max_queued_requests,
            self.num_waiting_tokens / self.limits.max_queued_tokens,
        )
        self._is_saturated = fill >= (_RELAXED if self._is_saturated else _SATURATED)
        return self._is_saturated

    def leave_queue(self, order: Order) -> None:
        self.num_waiting -= order.num_sequences
        self.num_waiting_tokens -= order.num_prompt_tokens
        self._waiting_cost -= order.num_tokens

    def _enter_queue(self, order: Order) -> None:
        self.num_waiting += order.num_sequences
        self.num_waiting_tokens += order.num_prompt_tokens
        self._waiting_cost += order.num_tokens

    def _meters_of(self, caller: Caller, adapter: str | None) -> list[Meter]:
        """Only of limited clients."""
        limits = self.limits
        of_key = limits.key if caller.limits.is_unlimited else caller.limits
        meters = []
        if caller.id and not of_key.is_unlimited:
            meters.append(self._meters.of(("key", caller.id), of_key))
        if adapter is not None and not limits.adapter.is_unlimited:
            meters.append(self._meters.of(("adapter", adapter), limits.adapter))
        return meters

    def _check(self, order: Order, meters: list[Meter]) -> None:
        limits = self.limits
        # One request above a bound is let in when it is alone: it could never come in otherwise.
        if self.num_waiting and (
            self.num_waiting + order.num_sequences > limits.max_queued_requests
            or self.num_waiting_tokens + order.num_prompt_tokens > limits.max_queued_tokens
        ):
            raise self._queue_full()
        wait = self.wait_seconds()
        patience = order.timeout_seconds
        if wait is not None and patience is not None and wait > patience:
            raise self._queue_full(f"the wait is about {wait:.1f} s, longer than the client's")
        self._check_meters(meters, order.num_tokens)

    def _check_meters(self, meters: list[Meter], num_tokens: int) -> None:
        for meter in meters:
            if excess := meter.excess(num_tokens, now=self._clock()):
                wait = excess.wait_seconds
                wait = self.wait_seconds() if wait is None else wait
                raise RateLimited(
                    f"the limit of {excess.limit} is reached; try again later",
                    retry_after_seconds=_sane(wait),
                )

    def _queue_full(self, reason: str = "the queue is full") -> QueueFull:
        return QueueFull(
            f"{reason}; try again later, or on another replica",
            retry_after_seconds=_sane(self.wait_seconds()),
        )

    def _settle(self, meter: Meter, ticket: Ticket) -> None:
        order = ticket.order
        unused = 0
        if ticket.num_answered is not None:
            unused = order.num_tokens - order.num_prompt_tokens - ticket.num_answered()
        meter.end(unused, now=self._clock())


def _sane(wait: float | None) -> float:
    if wait is None or not math.isfinite(wait):
        wait = _UNKNOWN_WAIT_SECONDS
    return min(max(wait, _LEAST_WAIT_SECONDS), _MOST_WAIT_SECONDS)
