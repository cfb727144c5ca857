"""Answers are of the format that they were taught in."""

from collections.abc import Sequence
from statistics import mean

from ..case import Case
from ..text_rule import Rule, check_pattern, check_schema, is_json
from ..verdict import Check, NotRun

_NAME = "answer_format"


async def check(case: Case) -> Sequence[Check | NotRun]:
    """As often as those of the data are, nearly."""
    if not case.samples:
        return [NotRun(_NAME, "no prompts are sampled")]
    taught = [case.shown(sample) for sample in case.samples]
    rule = _rule(case, taught)
    if rule is None:
        return [NotRun(_NAME, "the answers of the data have no format that can be checked")]
    usual = mean(map(rule, taught))
    given = mean(rule(case.shown(answer)) for answer in await case.answers())
    limit = max(0.0, usual - case.policy.max_format_loss)
    text = (
        f"{given:.0%} of the answers are valid, as {usual:.0%} are in the training data; at least "
        f"{limit:.0%} must be"
    )
    return [Check(name=_NAME, passed=given >= limit, rule=text, value=given, limit=limit)]


def _rule(case: Case, taught: Sequence[str]) -> Rule | None:
    policy = case.policy
    if policy.answer_schema is not None:
        return check_schema(policy.answer_schema)
    if policy.answer_pattern is not None:
        return check_pattern(policy.answer_pattern)
    is_taught = policy.answer_format == "auto" and all(map(is_json, taught))
    return is_json if is_taught or policy.answer_format == "json" else None
