"""Rules that look at one entry at a time: what each parent drops, and how the rest is joined.

TIES (Yadav et al., 2023), DARE (Yu et al., 2024), DELLA (Deep et al., 2024) and breadcrumbs
(Davari and Belilovsky, 2024), on any matrices of one shape. Every draw is seeded by its own module
and parent, so that neither order nor threads can show.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Generator, Tensor

Drop = Callable[[Tensor, Mapping[str, Any], Generator], Tensor]
Join = Callable[[Sequence[Tensor]], Tensor]


def merge_entries(
    parents: Sequence[Tensor],
    weights: Sequence[float],
    *,
    drop: str,
    join: str,
    settings: Mapping[str, Any],
    path: str,
) -> Tensor:
    """Merge float32 [N, K] of all parents into one; ``settings`` are those of the recipe."""
    kept = [
        DROPS[drop](parent, settings, _generator(settings, path, index)) * weight
        for index, (parent, weight) in enumerate(zip(parents, weights, strict=True))
    ]
    return JOINS[join](kept)


def _generator(settings: Mapping[str, Any], path: str, index: int) -> Generator:
    text = f"{settings.get('seed', 0)}\0{path}\0{index}"
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1
    return Generator().manual_seed(seed)


def keep_largest(matrix: Tensor, density: float) -> Tensor:
    """The largest entries by magnitude, all others 0."""
    return matrix * _largest(matrix.abs().flatten(), round(density * matrix.numel())).view_as(
        matrix
    )


def _largest(sizes: Tensor, num_kept: int) -> Tensor:
    """Mask [M] of the ``num_kept`` largest; of equal ones the first."""
    if num_kept >= len(sizes):
        return torch.ones_like(sizes, dtype=torch.bool)
    if num_kept == 0:
        return torch.zeros_like(sizes, dtype=torch.bool)
    threshold = sizes.kthvalue(len(sizes) - num_kept + 1).values
    mask = sizes > threshold
    equal = (sizes == threshold).nonzero().flatten()
    mask[equal[: num_kept - int(mask.sum())]] = True
    return mask


def _magnitude(matrix: Tensor, settings: Mapping[str, Any], generator: Generator) -> Tensor:
    return keep_largest(matrix, settings["density"])


def _dare(matrix: Tensor, settings: Mapping[str, Any], generator: Generator) -> Tensor:
    """Each entry stays with probability ``density``, scaled to keep the expected value."""
    density = settings["density"]
    mask = torch.rand(matrix.shape, generator=generator) < density
    return torch.where(mask, matrix / density, 0.0)


def _della(matrix: Tensor, settings: Mapping[str, Any], generator: Generator) -> Tensor:
    """As DARE, with probabilities that rise with the rank of the magnitude within the row."""
    density = settings["density"]
    # A probability outside [0, 1] would change how much stays on average.
    epsilon = min(settings["epsilon"], 2 * density, 2 * (1 - density))
    num_columns = matrix.shape[1]
    order = matrix.abs().argsort(dim=1, stable=True)
    steps = torch.linspace(-epsilon / 2, epsilon / 2, num_columns).expand_as(matrix)
    probability = density + torch.zeros_like(matrix).scatter_(1, order, steps)
    mask = torch.rand(matrix.shape, generator=generator) < probability
    return torch.where(mask, matrix / probability, 0.0)


def _breadcrumbs(matrix: Tensor, settings: Mapping[str, Any], generator: Generator) -> Tensor:
    """Drop the largest share ``gamma``, then keep ``density`` of all from there on."""
    sizes = matrix.abs().flatten()
    num_top = round(settings["gamma"] * len(sizes))
    num_kept = min(len(sizes), num_top + round(settings["density"] * len(sizes)))
    mask = _largest(sizes, num_kept) & ~_largest(sizes, num_top)
    return matrix * mask.view_as(matrix)


def _sum(parents: Sequence[Tensor]) -> Tensor:
    total = torch.zeros_like(parents[0])
    for parent in parents:
        total += parent
    return total


def _elect(parents: Sequence[Tensor]) -> Tensor:
    """Per entry, the mean of those parents whose sign is that of the sum."""
    elected = _sum(parents).sign()
    total = torch.zeros_like(elected)
    count = torch.zeros_like(elected)
    for parent in parents:
        agrees = (parent.sign() == elected) & (elected != 0)
        total += parent * agrees
        count += agrees
    return total / count.clamp(min=1)


DROPS: Final[Mapping[str, Drop]] = {
    "magnitude": _magnitude,
    "dare": _dare,
    "della": _della,
    "breadcrumbs": _breadcrumbs,
}
JOINS: Final[Mapping[str, Join]] = {"sum": _sum, "elect": _elect}
