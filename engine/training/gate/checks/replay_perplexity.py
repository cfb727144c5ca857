"""What was known before is still known."""

import math
from collections.abc import Sequence

from ..bootstrap import lower_bound
from ..case import Case
from ..verdict import Check, NotRun

_NAME = "replay_perplexity"


async def check(case: Case) -> Sequence[Check | NotRun]:
    """A perplexity that is so much higher is a loss that is higher by its logarithm."""
    scored = case.scores.replay if case.scores else None
    if case.scores is None or scored is None:
        return [NotRun(_NAME, "no replay rows were scored")]
    old, new = scored.baseline, scored.candidate
    room = math.log1p(case.policy.max_replay_increase)
    excess = [
        a - b - room * weight
        for a, b, weight in zip(new.losses, old.losses, new.weights, strict=True)
    ]
    confidence = case.policy.confidence
    sure = lower_bound(excess, new.weights, confidence=confidence, seed=case.seed)
    before, after = math.exp(min(old.mean, 700.0)), math.exp(min(new.mean, 700.0))
    limit = before * (1 + case.policy.max_replay_increase)
    rule = (
        f"the perplexity of replay rows is {after:.4g}, and {before:.4g} with the "
        f"{case.scores.baseline}; it may be {limit:.4g}, or not be above that with a confidence of "
        f"{confidence:.0%}"
    )
    passed = after <= limit or sure <= 0
    return [Check(name=_NAME, passed=passed, rule=rule, value=after, limit=limit)]
