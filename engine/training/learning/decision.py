"""Whether a canary is promoted, rolled back or watched on: a function of what was counted.

It leaves early only when a bar is exceeded beyond doubt, since it is asked again and again; it is
promoted when both versions had enough requests and every measured value keeps its bar.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal, TypeAlias

from ..feedback.completion import Opinion
from .policy import CanaryPolicy
from .traffic import Arm, Logs, Traffic

Action: TypeAlias = Literal["wait", "promote", "roll_back"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A measured difference or ratio against its bar; None where nothing was measured.

    ``bound`` is what the value is above with confidence: beyond ``limit``, the bar is broken.
    """

    name: str
    limit: float
    live: float | None = None
    canary: float | None = None
    value: float | None = None
    bound: float | None = None

    @property
    def is_kept(self) -> bool:
        return self.value is None or self.value <= self.limit

    @property
    def is_broken(self) -> bool:
        return self.bound is not None and self.bound > self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do, why, and every number behind it."""

    action: Action
    reason: str
    comparisons: tuple[Comparison, ...]

    def document(self) -> dict[str, Any]:
        return {
            "decision": self.action,
            "reason": self.reason,
            "comparisons": [
                {**asdict(one), "kept": one.is_kept, "broken": one.is_broken}
                for one in self.comparisons
            ],
        }


def decide(
    traffic: Traffic, live: Opinion, canary: Opinion, policy: CanaryPolicy, *, age_seconds: float
) -> Decision:
    """``live`` and ``canary`` are what users said of answers within the window."""
    comparisons = tuple(_comparisons(traffic, live, canary, policy))
    broken = [one.name for one in comparisons if one.is_broken]
    missed = [one.name for one in comparisons if not one.is_kept]
    num_live, num_canary = traffic.live.num_requests, traffic.canary.num_requests
    is_enough = min(num_live, num_canary) >= policy.min_requests
    counted = f"after {num_canary} requests, and {num_live} of the live version"
    if broken:
        action, reason = "roll_back", f"{_listed(broken)} beyond doubt {counted}"
    elif is_enough and not missed:
        action, reason = "promote", f"every bar is kept {counted}"
    elif age_seconds >= policy.max_seconds:
        why = _listed(missed) if is_enough else f"fewer than {policy.min_requests} requests"
        action, reason = "roll_back", f"not shown to be as good in time: {why} {counted}"
    else:
        action, reason = "wait", f"not decided {counted}"
    return Decision(action=action, reason=reason, comparisons=comparisons)


def _comparisons(
    traffic: Traffic, live: Opinion, canary: Opinion, policy: CanaryPolicy
) -> Iterable[Comparison]:
    sure = NormalDist().inv_cdf(policy.confidence)
    now, then = traffic.canary, traffic.live
    yield _rates(
        "error_rate",
        (now.num_errors, now.num_requests),
        (then.num_errors, then.num_requests),
        limit=policy.max_error_increase,
        sure=sure,
    )
    yield _rates(
        "dislike_rate",
        (canary.num_down, canary.num_up + canary.num_down),
        (live.num_down, live.num_up + live.num_down),
        limit=policy.max_dislike_increase,
        sure=sure,
    )
    yield _length(now, then, policy.length_factor, sure)
    for name in ("first_token", "inter_token"):
        logs = getattr(now, name), getattr(then, name)
        yield _ratio(f"{name}_seconds", *logs, limit=policy.latency_factor, sure=sure)


def _rates(
    name: str, canary: tuple[int, int], live: tuple[int, int], *, limit: float, sure: float
) -> Comparison:
    """Differences of shares, with the lower bound of Newcombe's hybrid score interval.

    R. G. Newcombe, Statistics in Medicine 17 (1998), method 10: sound for shares near 0.
    """
    if not canary[1] or not live[1]:
        return Comparison(name=name, limit=limit)
    high, low = canary[0] / canary[1], live[0] / live[1]
    least, most = _wilson(*canary, sure)[0], _wilson(*live, sure)[1]
    return Comparison(
        name=name,
        limit=limit,
        live=low,
        canary=high,
        value=high - low,
        bound=high - low - math.hypot(high - least, most - low),
    )


def _wilson(num: int, total: int, sure: float) -> tuple[float, float]:
    """Wilson's score interval of a share."""
    share, square = num / total, sure * sure
    middle = (share + square / (2 * total)) / (1 + square / total)
    spread = share * (1 - share) / total + square / (4 * total * total)
    width = sure / (1 + square / total) * math.sqrt(spread)
    return max(0.0, middle - width), min(1.0, middle + width)


def _length(canary: Arm, live: Arm, limit: float, sure: float) -> Comparison:
    """Longer and shorter alike: the factor between both, whichever way."""
    longer = _ratio("length", canary.lengths, live.lengths, limit=limit, sure=sure)
    shorter = _ratio("length", live.lengths, canary.lengths, limit=limit, sure=sure)
    if longer.value is None or shorter.value is None or longer.value >= shorter.value:
        return longer
    return Comparison(
        name="length",
        limit=limit,
        live=shorter.canary,
        canary=shorter.live,
        value=shorter.value,
        bound=shorter.bound,
    )


def _ratio(name: str, canary: Logs, live: Logs, *, limit: float, sure: float) -> Comparison:
    """Ratio of geometric means, with Welch's standard error on the logarithms."""
    if not canary.num or not live.num:
        return Comparison(name=name, limit=limit)
    difference = canary.mean - live.mean
    error = math.sqrt(canary.error + live.error)
    return Comparison(
        name=name,
        limit=limit,
        live=live.typical,
        canary=canary.typical,
        value=math.exp(difference),
        bound=None if math.isinf(error) else math.exp(difference - sure * error),
    )


def _listed(names: list[str]) -> str:
    return f"the canary's {' and '.join(names)} {'is' if len(names) == 1 else 'are'} over the bar"
