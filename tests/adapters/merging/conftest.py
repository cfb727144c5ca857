"""Random deltas, and how far two matrices are apart."""

from collections.abc import Callable

import pytest
import torch

from multiflora.adapters.merging.delta import Delta


@pytest.fixture(scope="session")
def random_delta() -> Callable[..., Delta]:
    """``random_delta(n, k, rank, seed=0)``: Gaussian factors, b [n, rank] and a [rank, k]."""

    def make(n: int, k: int, rank: int, seed: int = 0) -> Delta:
        generator = torch.Generator().manual_seed(seed)
        return Delta(
            torch.randn(n, rank, generator=generator), torch.randn(rank, k, generator=generator)
        )

    return make


@pytest.fixture(scope="session")
def error() -> Callable[[torch.Tensor, torch.Tensor], float]:
    """``error(actual, expected)``: the relative difference in the Frobenius norm."""

    def measure(actual: torch.Tensor, expected: torch.Tensor) -> float:
        return float((actual.double() - expected.double()).norm() / expected.double().norm())

    return measure
