"""Answers end by themselves."""

from collections.abc import Sequence
from statistics import mean

from ..case import Case
from ..verdict import Check, NotRun


async def check(case: Case) -> Sequence[Check | NotRun]:
    """As often as those of the data do, nearly."""
    if not case.samples:
        return [NotRun("end_rate", "no prompts are sampled")]
    answers = await case.answers()
    taught = mean(not case.end_tokens.isdisjoint(sample.answer) for sample in case.samples)
    ended = mean(answer.is_ended for answer in answers)
    floor = case.policy.min_end_rate * taught
    rule = (
        f"{ended:.0%} of {len(answers)} sampled answers end by themselves; at least {floor:.0%} "
        f"must, as {taught:.0%} do in the training data"
    )
    return [Check(name="end_rate", passed=ended >= floor, rule=rule, value=ended, limit=floor)]
