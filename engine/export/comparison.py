"""How far the logits of an exported model are from those of the base with its adapter."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsComparison:
    """Over ``positions`` of fixed prompts; ``greedy_agreement`` is the share with one best token.

    ``spread`` is the standard deviation of the expected logits, the scale of the differences.
    """

    positions: int
    max_difference: float
    mean_difference: float
    spread: float
    greedy_agreement: float


def compare(found: Tensor, expected: Tensor) -> LogitsComparison:
    """Both float32 [T, V]."""
    difference = (found - expected).abs()
    agrees = found.argmax(dim=1) == expected.argmax(dim=1)
    return LogitsComparison(
        positions=len(expected),
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        spread=float(expected.std()),
        greedy_agreement=float(agrees.float().mean()),
    )
