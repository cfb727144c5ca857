"""Answers do not end in a loop."""

import math
from collections.abc import Sequence
from statistics import mean

from ..case import Case
from ..verdict import Check, NotRun

_LONGEST_LOOP, _LOOP_ROUNDS, _LOOP_TOKENS = 32, 4, 16


async def check(case: Case) -> Sequence[Check | NotRun]:
    """No more often than those of the data do, nearly."""
    if not case.samples:
        return [NotRun("loop_rate", "no prompts are sampled")]
    loops = mean(_loops(case, answer.tokens) for answer in await case.answers())
    most = case.policy.max_loop_rate
    most += mean(_loops(case, sample.answer) for sample in case.samples)
    rule = f"{loops:.0%} of the answers end in a loop; at most {most:.0%} may"
    return [Check(name="loop_rate", passed=loops <= most, rule=rule, value=loops, limit=most)]


def _loops(case: Case, tokens: Sequence[int]) -> bool:
    """Whatever ended the answer: a loop that is left is one."""
    return is_loop([token for token in tokens if token not in case.end_tokens])


def is_loop(tokens: Sequence[int]) -> bool:
    """Whether the end repeats a run of up to 32 tokens at least four times, over 16 tokens."""
    for size in range(1, _LONGEST_LOOP + 1):
        rounds = max(_LOOP_ROUNDS, math.ceil(_LOOP_TOKENS / size))
        span = size * rounds
        if len(tokens) < span:
            continue
        tail = tuple(tokens[-span:])
        if tail == tail[:size] * rounds:
            return True
    return False
