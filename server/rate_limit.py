"""Limits on how much one key or one adapter may ask for, and the meters that enforce them."""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields
from typing import Final

_MINUTE: Final = 60.0
_MAX_IDLE_METERS: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimits:
    """None is no limit. Tokens are those of prompts and the answers that were asked for."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if value is not None and value < 1:
                raise ValueError(f"{limit.name} is {value}; it must be at least 1")

    @property
    def is_unlimited(self) -> bool:
        return all(getattr(self, limit.name) is None for limit in fields(self))


_WORDS: Final = {
    "requests": "requests_per_minute",
    "tokens": "tokens_per_minute",
    "concurrent": "max_concurrent",
}


def parse_limits(text: str) -> RateLimits:
    """Read ``requests=60,tokens=100000,concurrent=8``. Raises ``ValueError``."""
    values: dict[str, int] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        word, _, number = item.partition("=")
        if word not in _WORDS or not number.isdecimal():
            raise ValueError(
                f"{item!r} is no limit; write requests=N and tokens=N, per minute, or concurrent=N"
            )
        values[_WORDS[word]] = int(number)
    return RateLimits(**values)


class Bucket:
    """A minute's allowance that refills evenly; an order above it waits for a full bucket."""

    def __init__(self, per_minute: int, *, now: float) -> None:
        self._per_minute = per_minute
        self._level = float(per_minute)
        self._filled = now

    def wait_for(self, amount: int, *, now: float) -> float:
        """Seconds until ``amount`` can be taken; 0 is now."""
        self._fill(now)
        missing = min(amount, self._per_minute) - self._level
        return max(0.0, missing) * _MINUTE / self._per_minute

    def take(self, amount: int, *, now: float) -> None:
        """The level may fall below 0 for an order above a minute's allowance."""
        self._fill(now)
        self._level -= amount

    def _fill(self, now: float) -> None:
        gained = max(0.0, now - self._filled) * self._per_minute / _MINUTE
        self._level = min(float(self._per_minute), self._level + gained)
        self._filled = now

    def is_full(self, *, now: float) -> bool:
        self._fill(now)
        return self._level >= self._per_minute


@dataclass(frozen=True, slots=True)
class Excess:
    """Which limit is reached, and in how many seconds to come back; None if nobody knows."""

    limit: str
    wait_seconds: float | None


class Meter:
    """What one client has used of its limits."""

    def __init__(self, limits: RateLimits, *, now: float) -> None:
        self.limits = limits
        self.num_running = 0
        self._requests = _bucket(limits.requests_per_minute, now)
        self._tokens = _bucket(limits.tokens_per_minute, now)

    def excess(self, num_tokens: int, *, now: float) -> Excess | None:
        """Why a request of ``num_tokens`` cannot begin now; None if it can."""
        most = self.limits.max_concurrent
        if most is not None and self.num_running >= most:
            return Excess(f"{most} requests at a time", None)
        for bucket, amount, rate, word in (
            (self._requests, 1, self.limits.requests_per_minute, "requests"),
            (self._tokens, num_tokens, self.limits.tokens_per_minute, "tokens"),
        ):
            if bucket and (wait := bucket.wait_for(amount, now=now)):
                return Excess(f"{rate} {word} a minute", wait)
        return None

    def begin(self, num_tokens: int, *, now: float) -> None:
        self.num_running += 1
        if self._requests:
            self._requests.take(1, now=now)
        if self._tokens:
            self._tokens.take(num_tokens, now=now)

    def end(self, num_unused_tokens: int = 0, *, now: float) -> None:
        """Give back what the answer turned out not to need."""
        self.num_running -= 1
        if self._tokens:
            self._tokens.take(-num_unused_tokens, now=now)

    def is_idle(self, *, now: float) -> bool:
        """Whether forgetting the meter would change nothing."""
        buckets = (self._requests, self._tokens)
        return not self.num_running and all(b is None or b.is_full(now=now) for b in buckets)


class Meters:
    """Meters by key, made when first needed; idle ones are forgotten."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._meters: dict[Hashable, Meter] = {}

    def __len__(self) -> int:
        return len(self._meters)

    def of(self, key: Hashable, limits: RateLimits) -> Meter:
        """The meter of ``key``; other limits than before begin a new allowance."""
        meter = self._meters.get(key)
        if meter is None or meter.limits != limits:
            num_running = meter.num_running if meter else 0
            self._forget_idle()
            meter = self._meters[key] = Meter(limits, now=self._clock())
            meter.num_running = num_running
        return meter

    def _forget_idle(self) -> None:
        if len(self._meters) >= _MAX_IDLE_METERS:
            now = self._clock()
            self._meters = {k: m for k, m in self._meters.items() if not m.is_idle(now=now)}


def _bucket(per_minute: int | None, now: float) -> Bucket | None:
    return None if per_minute is None else Bucket(per_minute, now=now)
