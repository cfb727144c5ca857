"""How much of the device's time training gets beside requests. Imports no torch.

While nothing is served, every quantum may run. While requests run, serving time earns training a
credit, ``share`` seconds a second, and quanta spend it: tokens come later by that share on average.
Where a gap between tokens is asked for in seconds, the share rises slowly while they come in time
and is halved when they do not (AIMD), but never falls to nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ..background import ServingLoad
from ..config import TrainingConfig

BALANCED_SHARE: Final = 0.5
# Training goes on under any load, and serving always has most of the time.
FLOOR_SHARE: Final = 0.05
CEILING_SHARE: Final = 1.0
RISE: Final = 0.01
FALL: Final = 0.5
# Steps with a prompt in them are the longest gaps already, and most prompts take one. Quanta wait
# for so many of them before they run between two.
PATIENCE: Final = 3
# How much the latest measurement counts.
_WEIGHT: Final = 0.1


@dataclass(slots=True)
class Average:
    """An exponential moving average; None before the first value."""

    value: float | None = None

    def add(self, value: float) -> None:
        self.value = value if self.value is None else self.value + _WEIGHT * (value - self.value)


class QuantumTimes:
    """Seconds of quanta by kind and number of tokens."""

    def __init__(self) -> None:
        self._times: dict[tuple[str, int], Average] = {}

    def add(self, kind: str, num_tokens: int, seconds: float) -> None:
        self._times.setdefault((kind, num_tokens), Average()).add(seconds)

    def clear(self) -> None:
        self._times.clear()

    @property
    def longest(self) -> float:
        """Of the kind that takes longest; 0 before the first quantum."""
        return max((time.value or 0.0 for time in self._times.values()), default=0.0)


class Pace:
    """Decides when a quantum may start; ``clock`` gives seconds.

    At most one quantum's credit is saved up, so that serving is interrupted by one at a time.
    """

    def __init__(self, config: TrainingConfig, clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock
        self._credit = 0.0
        self._gaps = Average()
        self._last_step: float | None = None
        self._num_awaiting = 0
        self.times = QuantumTimes()
        self.share = BALANCED_SHARE
        if config.pace == "throughput":
            self.share = CEILING_SHARE
        elif config.token_gap_seconds:
            self.share = FLOOR_SHARE

    def serve(self, load: ServingLoad) -> None:
        """Take note of a turn of serving, after its step."""
        taken = self._num_awaiting + (0 if load.is_brief else 1)
        self._num_awaiting = taken if load.awaits_first_token else 0
        if not load.step_seconds:
            # A gap in which nothing was decoded is nobody's wait for a token.
            self._last_step = None
            return
        now = self._clock()
        if self._last_step is not None:
            self._gaps.add(now - self._last_step)
            self._adjust()
        self._last_step = now
        earned = self._credit + self.share * load.step_seconds
        self._credit = min(earned, max(self.times.longest, self.share * load.step_seconds))

    def allows(self, load: ServingLoad) -> bool:
        """Whether a quantum may start at this point."""
        if not load.num_requests:
            return True
        if self._config.pace == "idle-only":
            return False
        if not load.step_seconds:
            # Requests wait for their adapters, not for the device.
            return True
        if load.awaits_first_token:
            is_paid = self._credit > 0 and self._credit >= self.times.longest
            return is_paid and self._num_awaiting >= PATIENCE
        return self._credit > 0

    def spend(self, kind: str, num_tokens: int, seconds: float, load: ServingLoad) -> None:
        """Take note of a quantum that ran."""
        self.times.add(kind, num_tokens, seconds)
        if load.num_requests and load.step_seconds:
            self._credit -= seconds

    def _adjust(self) -> None:
        target = self._config.token_gap_seconds
        if self._config.pace != "balanced" or not target:
            return
        assert self._gaps.value is not None
        if self._gaps.value > target:
            self.share = max(FLOOR_SHARE, self.share * FALL)
            # The next verdict is about what follows, not about what led to this one.
            self._gaps.value = target
        else:
            self.share = min(CEILING_SHARE, self.share + RISE)
