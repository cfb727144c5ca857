"""Held-out rows are not worse than under what the version is to replace."""

from collections.abc import Sequence

from ..bootstrap import lower_bound
from ..case import Case
from ..verdict import Check, NotRun

_NAME = "validation_loss"


async def check(case: Case) -> Sequence[Check | NotRun]:
    """Paired: worse only if the same rows say so with the policy's confidence."""
    scored = case.scores.validation if case.scores else None
    if case.scores is None or scored is None:
        return [NotRun(_NAME, "no validation rows were scored")]
    old, new, share = scored.baseline, scored.candidate, 1 + case.policy.max_loss_increase
    excess = [a - share * b for a, b in zip(new.losses, old.losses, strict=True)]
    confidence = case.policy.confidence
    sure = lower_bound(excess, new.weights, confidence=confidence, seed=case.seed)
    limit = old.mean * share
    rule = (
        f"the validation loss is {new.mean:.4g}, and {old.mean:.4g} with the {case.scores.baseline}"
        f"; it may be {limit:.4g}, or not be above that with a confidence of {confidence:.0%}"
    )
    passed = new.mean <= limit or sure <= 0
    return [Check(name=_NAME, passed=passed, rule=rule, value=new.mean, limit=limit)]
