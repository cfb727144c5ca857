"""Weighted means of directions on the sphere, as coefficients of the deltas themselves.

All are scalar combinations of the parents, found from the matrix of inner products [n, n] alone.
SLERP is Shoemake's (1985) on the flattened product; the mean direction of more than two is one
step (multi-SLERP) or the fixed point (Karcher) of the mean in the tangent space.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..error import AdapterRejected
from .gram import cosine

# Closer than this to one line there is no usable arc.
_PARALLEL = 0.9995
_MAX_STEPS = 200
_CONVERGED, _GAVE_UP = 1e-13, 1e-8


class Combination(NamedTuple):
    """One coefficient per parent; ``branch`` names the case of the formula that was taken."""

    coefficients: list[float]
    branch: str


def slerp(inner: Tensor, t: float, *, lerp_antiparallel: bool) -> Combination:
    """From the first of two deltas at ``t`` = 0 to the second at 1, along the arc.

    Raises ``AdapterRejected`` for opposite directions, unless they are to be interpolated linearly.
    """
    linear = [1 - t, t]
    if inner[0, 0] == 0 or inner[1, 1] == 0:
        return Combination(linear, "zero-parent")
    if t in (0, 1):
        return Combination(linear, "endpoint")
    cos = cosine(inner, 0, 1)
    if cos > _PARALLEL:
        return Combination(linear, "lerp-parallel")
    if cos < -_PARALLEL:
        _require(lerp_antiparallel, cos)
        return Combination(linear, "lerp-antiparallel")
    angle = math.acos(cos)
    return Combination([math.sin(share * angle) / math.sin(angle) for share in linear], "slerp")


def multi_slerp(inner: Tensor, weights: Sequence[float], *, lerp_antiparallel: bool) -> Combination:
    """The mean direction of any number of deltas, in one step; of two, exactly ``slerp``.

    ``weights`` are not negative and are taken relative to their sum.
    """
    if len(weights) == 2:
        return slerp(inner, weights[1] / sum(weights), lerp_antiparallel=lerp_antiparallel)
    shares = _shares(weights)
    used = _used(inner, shares)
    if len(used) < 2:
        return Combination(shares, "endpoint")
    try:
        direction = _mean_direction(inner, shares, used, max_steps=1)
    except AdapterRejected:
        if not lerp_antiparallel:
            raise
        return Combination(shares, "lerp-antiparallel")
    # A zero delta pulls towards the origin, as it does in a linear mean.
    held = sum(shares[i] for i in used)
    return Combination([held * c for c in direction], "multi-slerp")


def sequential_slerp(
    inner: Tensor, weights: Sequence[float], *, lerp_antiparallel: bool
) -> Combination:
    """SLERP of the first two, of the result and the third, and so on; depends on the order."""
    size = len(weights)
    coefficients = torch.zeros(size, dtype=torch.float64)
    coefficients[0] = 1
    held = weights[0]
    for index in range(1, size):
        held += weights[index]
        if weights[index] == 0:
            continue
        following = torch.zeros(size, dtype=torch.float64)
        following[index] = 1
        both = torch.stack([coefficients, following])  # [2, n]
        step = slerp(
            both @ inner @ both.T, weights[index] / held, lerp_antiparallel=lerp_antiparallel
        )
        coefficients = torch.tensor(step.coefficients, dtype=torch.float64) @ both
    return Combination(coefficients.tolist(), "sequential")


def karcher(inner: Tensor, weights: Sequence[float]) -> Combination:
    """The Riemannian mean of the directions, at the weighted mean of the lengths."""
    shares = _shares(weights)
    used = _used(inner, shares)
    if len(used) < 2:
        return Combination(shares, "endpoint")
    norms = inner.diagonal().sqrt().tolist()
    length = sum(share * norm for share, norm in zip(shares, norms, strict=True))
    direction = _mean_direction(inner, shares, used, max_steps=_MAX_STEPS)
    scaled = [length * c / n if n else 0.0 for c, n in zip(direction, norms, strict=True)]
    return Combination(scaled, "karcher")


def _shares(weights: Sequence[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


def _used(inner: Tensor, shares: Sequence[float]) -> list[int]:
    """The deltas that have a direction and a say."""
    return [i for i, share in enumerate(shares) if share > 0 and inner[i, i] > 0]


def _mean_direction(
    inner: Tensor, shares: Sequence[float], used: list[int], *, max_steps: int
) -> list[float]:
    """Coefficients on the unit vectors of all deltas; their combination has length 1."""
    norms = inner.diagonal()[used].sqrt()
    cosines = inner[used][:, used] / torch.outer(norms, norms)
    weights = torch.tensor([shares[i] for i in used], dtype=torch.float64)
    weights = weights / weights.sum()
    mean = _unit(weights, cosines)
    length, num_steps = math.inf, 0
    while length > _CONVERGED and num_steps < max_steps:
        tangent = _tangent_mean(mean, weights, cosines)
        length = float((tangent @ cosines @ tangent).clamp(min=0).sqrt())
        turned = math.cos(length) * mean + _sinc(length) * tangent
        mean = _unit(turned, cosines)
        num_steps += 1
    if max_steps > 1 and length > _GAVE_UP:
        raise AdapterRejected("no_mean", "the Karcher mean does not converge; use slerp or linear")
    found = dict(zip(used, mean.tolist(), strict=True))
    return [found.get(i, 0.0) for i in range(len(shares))]


def _tangent_mean(mean: Tensor, weights: Tensor, cosines: Tensor) -> Tensor:
    """The weighted mean of all directions as seen from ``mean``, in its tangent space."""
    cos = (cosines @ mean).clamp(-1, 1)
    _require(bool(cos.min() > -_PARALLEL), float(cos.min()))
    sin = (1 - cos * cos).sqrt()
    stretch = torch.where(sin > 1e-8, torch.atan2(sin, cos) / sin.clamp(min=1e-8), 1.0)
    pulled = weights * stretch
    return pulled - (pulled @ cos) * mean


def _sinc(angle: float) -> float:
    return math.sin(angle) / angle if angle else 1.0


def _unit(vector: Tensor, cosines: Tensor) -> Tensor:
    squared = float(vector @ cosines @ vector)
    _require(squared > 1 - _PARALLEL, -1.0)
    return vector / math.sqrt(squared)


def _require(is_usable: bool, cos: float) -> None:
    if not is_usable:
        raise AdapterRejected(
            "antiparallel",
            f"parents point in opposite directions (cosine {cos:.4f}), so that no arc is shortest; "
            "use method linear, or on_antiparallel=lerp with slerp",
        )
