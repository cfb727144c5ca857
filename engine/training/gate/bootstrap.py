"""Bounds by resampling rows: how sure a difference of means is, with the rows at hand."""

import random
from collections.abc import Sequence
from typing import Final

ROUNDS: Final = 1000


def lower_bound(
    numerators: Sequence[float],
    denominators: Sequence[float],
    *,
    confidence: float,
    seed: int = 0,
) -> float:
    """The value above which sum(numerators) / sum(denominators) lies with ``confidence``.

    Both are of the same rows, drawn together (paired), with replacement, 1000 times; one-sided.
    """
    assert numerators
    assert len(numerators) == len(denominators)
    stream, count = random.Random(seed), len(numerators)
    means = []
    for _ in range(ROUNDS):
        rows = stream.choices(range(count), k=count)
        means.append(sum(numerators[r] for r in rows) / sum(denominators[r] for r in rows))
    return sorted(means)[int((1 - confidence) * ROUNDS)]
