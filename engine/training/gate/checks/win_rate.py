"""A judge does not prefer what is to be replaced."""

from collections.abc import Sequence
from statistics import mean

from ..bootstrap import lower_bound
from ..case import Case
from ..judge import comparison, win
from ..verdict import Check, NotRun

_NAME = "judge"


async def check(case: Case) -> Sequence[Check | NotRun]:
    """The lower bound of the win rate, with ties as halves; a judge that is away passes nobody."""
    if case.policy.judge is None:
        return [NotRun(_NAME, "the policy has no judge")]
    if case.judge is None or not case.samples:
        return [_failed(case, f"the judge {case.policy.judge!r} is not here, or no prompt is")]
    forward, backward = [], []
    asked = zip(case.samples, await case.answers(), await case.baseline_answers(), strict=True)
    for sample, new, old in asked:
        question = case.text.text(sample.prompt)
        texts = case.shown(new), case.shown(old)
        forward.append(comparison(question, *texts))
        backward.append(comparison(question, *texts[::-1]))
    try:
        votes = await case.judge.ask([*forward, *backward])
    except OSError as error:
        return [_failed(case, f"the judge did not answer: {error}")]
    wins = [win(*pair) for pair in zip(votes[: len(forward)], votes[len(forward) :], strict=True)]
    confidence, limit = case.policy.confidence, case.policy.min_judge_win_rate
    sure = lower_bound(wins, [1.0] * len(wins), confidence=confidence, seed=case.seed)
    rule = (
        f"the judge prefers {mean(wins):.0%} of {len(wins)} answers in both orders, at least "
        f"{sure:.0%} with a confidence of {confidence:.0%}; it must be {limit:.0%}"
    )
    return [Check(name=_NAME, passed=sure >= limit, rule=rule, value=sure, limit=limit)]


def _failed(case: Case, rule: str) -> Check:
    return Check(name=_NAME, passed=False, rule=rule, limit=case.policy.min_judge_win_rate)
