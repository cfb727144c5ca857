"""Recent prompts are answered much as before."""

from collections.abc import Sequence
from statistics import mean

from ..case import Case
from ..verdict import Check, NotRun

_NAME = "divergence"


async def check(case: Case) -> Sequence[Check | NotRun]:
    """KL(baseline || candidate) at the tokens of recent answers."""
    if case.scores is None or not case.scores.divergences:
        return [NotRun(_NAME, "no recent answers were scored")]
    value, limit = mean(case.scores.divergences), case.policy.max_divergence
    rule = (
        f"the version is {value:.3g} nats per token from the {case.scores.baseline} on "
        f"{len(case.scores.divergences)} recent answers; {limit:.3g} are allowed"
    )
    return [Check(name=_NAME, passed=value <= limit, rule=rule, value=value, limit=limit)]
