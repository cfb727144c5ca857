"""Losses are numbers."""

import math
from collections.abc import Sequence

from ..case import Case
from ..verdict import Check


async def check(case: Case) -> Sequence[Check]:
    """The weights were checked value by value on their way into the store; these are the losses."""
    names = ("loss", "eval_loss")
    losses = [row[name] for row in case.metrics for name in names if name in row]
    is_finite = all(loss is not None and math.isfinite(loss) for loss in losses)
    return [Check(name="finite", passed=is_finite, rule="weights and losses must be finite")]
