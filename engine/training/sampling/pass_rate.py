"""How often sampled answers pass: pass@1 and pass@k, without bias."""

from collections.abc import Iterable
from math import comb
from statistics import fmean


def pass_at(num_drawn: int, num_passed: int, k: int) -> float:
    """The chance that one of ``k`` answers passes, estimated from ``num_drawn`` >= k.

    1 - C(n - c, k) / C(n, k), as M. Chen et al. define it (2021, arXiv 2107.03374); exact in
    integers. Raises ``ValueError``.
    """
    if not 0 < k <= num_drawn or not 0 <= num_passed <= num_drawn:
        raise ValueError(
            f"pass@{k} of {num_passed} out of {num_drawn} answers is not defined; k lies between 1 "
            "and the number of answers"
        )
    return 1.0 - comb(num_drawn - num_passed, k) / comb(num_drawn, k)


def pass_rates(num_passed: Iterable[int], num_drawn: int) -> dict[str, float]:
    """``pass@1``, ``pass@2``, ``pass@4`` ... and that of all answers, on average over prompts."""
    passed = list(num_passed)
    sizes = [1 << power for power in range(num_drawn.bit_length()) if 1 << power <= num_drawn]
    return {
        f"pass@{k}": fmean(pass_at(num_drawn, one, k) for one in passed) if passed else 0.0
        for k in sorted({*sizes, num_drawn})
    }
