"""The shared basis is that of the SVD of all parents side by side, and loses nothing."""

from collections.abc import Callable

import torch
from torch import Tensor

from multiflora.adapters.merging.delta import Delta, zero_delta
from multiflora.adapters.merging.knots import align

MakeDelta = Callable[..., Delta]
Measure = Callable[[Tensor, Tensor], float]


def test_every_parent_comes_back_from_its_block(random_delta: MakeDelta, error: Measure) -> None:
    deltas = [random_delta(24, 20, 3), zero_delta((24, 20)), random_delta(24, 20, 5, seed=1)]
    basis, blocks = align(deltas)
    assert basis.shape == (24, 8)
    torch.testing.assert_close(basis.T @ basis, torch.eye(8), atol=1e-5, rtol=0)
    for delta, block in zip(deltas, blocks, strict=True):
        assert error(basis @ block, delta.dense()) < 2e-6


def test_blocks_are_those_of_the_dense_decomposition(
    random_delta: MakeDelta, error: Measure
) -> None:
    deltas = [random_delta(24, 20, 3), random_delta(24, 20, 2, seed=1)]
    whole = torch.cat([delta.dense().double() for delta in deltas], dim=1)
    _, values, right = torch.linalg.svd(whole, full_matrices=False)
    expected = (values[:5, None] * right[:5]).abs()
    _, blocks = align(deltas)
    # Singular vectors are unique up to their sign.
    assert error(torch.cat(blocks, dim=1).abs(), expected) < 1e-5


def test_parents_that_share_all_directions_take_no_more_rank(random_delta: MakeDelta) -> None:
    delta = random_delta(24, 20, 3)
    assert align([delta, delta.scaled(-2)]).basis.shape == (24, 3)
    assert align([zero_delta((24, 20))]).basis.shape == (24, 0)
