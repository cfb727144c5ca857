"""Answers are about as long as those of the data."""

from collections.abc import Sequence
from statistics import mean
from typing import Final

from ..case import Case
from ..verdict import Check, NotRun

# Lengths that differ by less are the same: short answers jump by a factor with one word.
_SLACK: Final = 8


async def check(case: Case) -> Sequence[Check | NotRun]:
    """On average, within the policy's factor either way."""
    if not case.samples:
        return [NotRun("length", "no prompts are sampled")]
    factor = case.policy.length_factor
    taught = mean(len(sample.answer) for sample in case.samples)
    given = mean(len(answer.tokens) for answer in await case.answers())
    low, high = taught / factor - _SLACK, taught * factor + _SLACK
    rule = (
        f"answers have {given:.1f} tokens on average, {taught:.1f} in the training data; "
        f"{max(0.0, low):.1f} to {high:.1f} are allowed"
    )
    passed = low <= given <= high
    return [Check(name="length", passed=passed, rule=rule, value=given, limit=high)]
