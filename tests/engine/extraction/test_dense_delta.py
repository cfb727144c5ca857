"""Ranks of a large matrix are few, enough, and honestly accounted for."""

import pytest
import torch

from multiflora.adapters.merging.rank_policy import RankPolicy
from multiflora.adapters.merging.recompress import truncate
from multiflora.engine.extraction.dense_delta import decompose

SHAPE = (1100, 1060)


def with_spectrum(values: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(size, len(values), generator=generator, dtype=torch.float64))[0]
        for size in SHAPE
    )
    return (left * values.double() @ right.T).float()


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99])
@pytest.mark.parametrize(
    "values",
    [0.8 ** torch.arange(40.0), 0.99 ** torch.arange(200.0)],
    ids=["within-the-first-try", "beyond-it"],
)
def test_the_fewest_ranks_that_hold_the_energy_are_found(
    values: torch.Tensor, energy: float
) -> None:
    matrix = with_spectrum(values)
    found = decompose(matrix, RankPolicy(energy=energy))
    held = values.double().square().cumsum(0) / values.double().square().sum()
    best = int((held < energy).sum()) + 1
    assert best <= found.delta.rank <= best + 1
    error = float((found.delta.dense() - matrix).square().sum() / matrix.square().sum())
    assert found.energy_kept == pytest.approx(1 - error, abs=1e-4)
    assert found.energy_kept >= energy - 1e-6


def test_small_matrices_and_numbers_of_ranks_are_cut_exactly() -> None:
    matrix = torch.randn(96, 64, generator=torch.Generator().manual_seed(1))
    for rank in (RankPolicy(energy=0.7), RankPolicy(rank=5), RankPolicy()):
        found, expected = decompose(matrix, rank), truncate(matrix, rank)
        assert found.energy_kept == expected.energy_kept
        assert torch.equal(found.delta.dense(), expected.delta.dense())
