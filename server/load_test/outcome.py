"""What came of one request, and the figures of many."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Times are in seconds: to the first token, and between pieces of the answer after it.

    ``error`` is empty for an answer that is whole. A piece is what came at once: a token of most
    servers, several of some.
    """

    name: str
    seconds: float
    first_token: float | None = None
    gaps: tuple[float, ...] = ()
    num_tokens: int = 0
    num_prompt_tokens: int = 0
    error: str = ""

    @property
    def per_token(self) -> float | None:
        """Seconds for each token after the first."""
        if self.num_tokens < 2:
            return None
        return sum(self.gaps) / (self.num_tokens - 1)


def figures(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """Rates over ``seconds``, quantiles in milliseconds, and failures by what they were.

    Failed requests count in nothing but ``requests``, ``failed`` and ``errors``.
    """
    whole = [outcome for outcome in outcomes if not outcome.error]
    errors = Counter(outcome.error for outcome in outcomes if outcome.error)
    return {
        "requests": len(outcomes),
        "failed": len(outcomes) - len(whole),
        "errors": dict(errors.most_common()),
        "seconds": round(seconds, 3),
        "requests_per_second": round(len(whole) / seconds, 3),
        "tokens": sum(outcome.num_tokens for outcome in whole),
        "prompt_tokens": sum(outcome.num_prompt_tokens for outcome in whole),
        "tokens_per_second": round(sum(outcome.num_tokens for outcome in whole) / seconds, 2),
        "first_token_ms": quantiles([o.first_token for o in whole if o.first_token is not None]),
        "inter_token_ms": quantiles([gap for outcome in whole for gap in outcome.gaps]),
        "per_token_ms": quantiles([o.per_token for o in whole if o.per_token is not None]),
        "request_ms": quantiles([outcome.seconds for outcome in whole]),
    }


def by_name(outcomes: Sequence[Outcome], seconds: float) -> dict[str, dict[str, Any]]:
    """The figures of each name, those with most requests first."""
    apart: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        apart.setdefault(outcome.name, []).append(outcome)
    ordered = sorted(apart.items(), key=lambda pair: (-len(pair[1]), pair[0]))
    return {name: figures(found, seconds) for name, found in ordered}


def quantiles(seconds: Sequence[float]) -> dict[str, float] | None:
    """Milliseconds, p99 being the smallest that 99 of 100 do not exceed; None of nothing."""
    if not seconds:
        return None
    ordered = sorted(seconds)
    last = len(ordered) - 1
    found = {
        "p50": statistics.median(ordered),
        "p99": ordered[min(last, -(-99 * len(ordered) // 100) - 1)],
        "max": ordered[last],
    }
    return {name: round(1e3 * value, 3) for name, value in found.items()}
