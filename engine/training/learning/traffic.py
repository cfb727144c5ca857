"""What is counted of a version's requests: numbers that add up, and are kept over a restart."""

import math
from dataclasses import dataclass, field, replace

# Of one made-up measurement, off by a factor of two, that stands for what few have not shown yet.
_PRIOR_SPREAD = math.log(2) ** 2


@dataclass(frozen=True, slots=True)
class Logs:
    """Logarithms of positive measurements: ratios of versions are differences of their means."""

    num: int = 0
    total: float = 0.0
    squares: float = 0.0

    def plus(self, value: float) -> "Logs":
        """With one more measurement; what is not positive is taken for a millionth."""
        log = math.log(max(value, 1e-6))
        return Logs(self.num + 1, self.total + log, self.squares + log * log)

    @property
    def mean(self) -> float:
        return self.total / self.num if self.num else 0.0

    @property
    def error(self) -> float:
        """The variance of the mean; infinite while it cannot be known.

        A few equal measurements are no certainty: the spread has a prior that weighs as one.
        """
        if self.num < 2:
            return math.inf
        spread = max(self.squares - self.total * self.total / self.num, 0.0)
        return (spread + _PRIOR_SPREAD) / self.num / self.num

    @property
    def typical(self) -> float | None:
        """The geometric mean."""
        return math.exp(self.mean) if self.num else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one request ended; times are in seconds, and None where they were not measured."""

    is_error: bool = False
    num_tokens: int = 0
    first_token: float | None = None
    inter_token: float | None = None


@dataclass(frozen=True, slots=True)
class Arm:
    """One version's requests. ``lengths`` are of answers in tokens, plus one."""

    num_requests: int = 0
    num_errors: int = 0
    lengths: Logs = field(default_factory=Logs)
    first_token: Logs = field(default_factory=Logs)
    inter_token: Logs = field(default_factory=Logs)

    def plus(self, outcome: Outcome) -> "Arm":
        if outcome.is_error:
            return replace(self, num_requests=self.num_requests + 1, num_errors=self.num_errors + 1)
        first, inter = outcome.first_token, outcome.inter_token
        return replace(
            self,
            num_requests=self.num_requests + 1,
            lengths=self.lengths.plus(outcome.num_tokens + 1),
            first_token=self.first_token if first is None else self.first_token.plus(first),
            inter_token=self.inter_token if inter is None else self.inter_token.plus(inter),
        )


@dataclass(frozen=True, slots=True)
class Traffic:
    """Both versions of a name while a canary runs."""

    live: Arm = field(default_factory=Arm)
    canary: Arm = field(default_factory=Arm)
