"""A user's own questions, asked of the version and of what it is to replace: suite and facts.

A suite is what the version is for; facts are what it must not unlearn, or learn to make up.
"""

from collections.abc import Sequence
from statistics import mean
from typing import Final

from ..case import Case
from ..policy import Probe
from ..text_rule import check_pattern
from ..verdict import Check, NotRun

_MAX_TOKENS: Final = 256


async def check_suite(case: Case) -> Sequence[Check | NotRun]:
    """No worse than the baseline, and as good as the policy wants."""
    if not case.policy.suite:
        return [NotRun("suite", "the policy has no suite")]
    given, usual = await _rates(case, case.policy.suite, "suite")
    limit = max(usual, case.policy.min_suite_rate)
    rule = (
        f"{given:.0%} of the suite's {len(case.policy.suite)} questions are answered right, "
        f"{usual:.0%} by what is to be replaced; at least {limit:.0%} must be"
    )
    return [Check(name="suite", passed=given >= limit, rule=rule, value=given, limit=limit)]


async def check_facts(case: Case) -> Sequence[Check | NotRun]:
    """No worse than the baseline, but for the policy's allowance."""
    if not case.policy.facts:
        return [NotRun("facts", "the policy has no facts")]
    given, usual = await _rates(case, case.policy.facts, "facts")
    limit = max(0.0, usual - case.policy.max_fact_loss)
    rule = (
        f"{given:.0%} of {len(case.policy.facts)} facts are known, {usual:.0%} to what is to be "
        f"replaced; at least {limit:.0%} must be"
    )
    return [Check(name="facts", passed=given >= limit, rule=rule, value=given, limit=limit)]


async def _rates(case: Case, probes: Sequence[Probe], label: str) -> tuple[float, float]:
    """Of the candidate, and of the baseline."""
    given = await _rate(case, case.digest, probes, label)
    return given, await _rate(case, case.baseline, probes, label)


async def _rate(case: Case, digest: str | None, probes: Sequence[Probe], label: str) -> float:
    prompts = [case.text.prompt(probe.prompt) for probe in probes]
    answers = await case.asker.answers(digest, prompts, max_tokens=_MAX_TOKENS, label=label)
    pairs = zip(probes, answers, strict=True)
    return mean(_is_right(probe, case.shown(answer)) for probe, answer in pairs)


def _is_right(probe: Probe, answer: str) -> bool:
    if probe.exact is not None:
        return answer == probe.exact.strip()
    assert probe.pattern is not None
    return check_pattern(probe.pattern)(answer)
