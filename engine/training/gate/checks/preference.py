"""Pairs are told apart, and not by making both answers unlikely: reward accuracy, chosen drop."""

from collections.abc import Sequence
from statistics import mean

from ..case import Case
from ..verdict import Check, NotRun


async def check(case: Case) -> Sequence[Check | NotRun]:
    """Of held-out pairs."""
    scored = case.scores.validation if case.scores else None
    if scored is None or not scored.candidate.margins:
        reason = "no held-out pairs were scored"
        return [NotRun("reward_accuracy", reason), NotRun("chosen_drop", reason)]
    return [_accuracy(case, scored.candidate.margins), _drop(case)]


def _accuracy(case: Case, margins: Sequence[float]) -> Check:
    value, limit = mean(margin > 0 for margin in margins), case.policy.min_reward_accuracy
    rule = (
        f"{value:.0%} of {len(margins)} held-out pairs are told apart, by {mean(margins):.3g} on "
        f"average; at least {limit:.0%} must be, and the mean must be above 0"
    )
    passed = value >= limit and mean(margins) > 0
    return Check(name="reward_accuracy", passed=passed, rule=rule, value=value, limit=limit)


def _drop(case: Case) -> Check:
    assert case.scores is not None
    assert case.scores.validation is not None
    scored = case.scores.validation
    before, after = mean(scored.baseline.chosen), mean(scored.candidate.chosen)
    value, limit = (before - after) / max(abs(before), 1e-9), case.policy.max_chosen_drop
    rule = (
        f"chosen answers have {after:.4g} nats per token, {before:.4g} with the "
        f"{case.scores.baseline}, a drop of {value:.1%}; {limit:.0%} are allowed, and sft_weight "
        "holds them up"
    )
    return Check(name="chosen_drop", passed=value <= limit, rule=rule, value=value, limit=limit)
