"""Rotary tables for every position a server can reach, in each context-extension variant.

Sources: RoFormer (arXiv 2104.09864), position interpolation (2306.15595), YaRN (2309.00071); the
arithmetic follows ``transformers.modeling_rope_utils`` operation by operation.
"""

import math

import torch
from torch import Tensor

from .config import RopeConfig


def rope_tables(
    rope: RopeConfig, *, head_dim: int, max_len: int, max_position: int
) -> tuple[Tensor, Tensor]:
    """Return cos and sin, float32 [max_len, head_dim / 2], times the variant's attention scaling.

    ``max_position`` is the length the checkpoint declares. ``dynamic`` scaling is fixed for
    ``max_len``: frequencies that followed each request's length, as in transformers, would
    invalidate keys that are already cached and rotated. It changes nothing while ``max_len`` is at
    most ``max_position``.
    """
    frequencies = _frequencies(rope, head_dim, max(max_len, max_position), max_position)
    positions = torch.arange(max_len, dtype=torch.float32)
    angles = positions[:, None] * frequencies  # [max_len, D / 2]
    scaling = _attention_scaling(rope)
    return angles.cos() * scaling, angles.sin() * scaling


def _frequencies(rope: RopeConfig, head_dim: int, length: int, max_position: int) -> Tensor:
    match rope.kind:
        case "linear":
            return _plain(rope.theta, head_dim) / rope.factor
        case "dynamic":
            stretch = rope.factor * length / max_position - (rope.factor - 1)
            return _plain(rope.theta * stretch ** (head_dim / (head_dim - 2)), head_dim)
        case "llama3":
            return _llama3(rope, head_dim)
        case "yarn":
            return _yarn(rope, head_dim)
    return _plain(rope.theta, head_dim)


def _plain(theta: float, head_dim: int) -> Tensor:
    return 1.0 / _wave_bases(theta, head_dim)


def _wave_bases(theta: float, head_dim: int) -> Tensor:
    return theta ** (torch.arange(0, head_dim, 2).float() / head_dim)  # [D / 2]


def _llama3(rope: RopeConfig, head_dim: int) -> Tensor:
    """Keep short wavelengths, divide long ones by the factor, blend between."""
    assert rope.original_max_position is not None
    plain = _plain(rope.theta, head_dim)
    wavelength = 2 * math.pi / plain
    longest = rope.original_max_position / rope.low_freq_factor
    shortest = rope.original_max_position / rope.high_freq_factor
    scaled = torch.where(wavelength > longest, plain / rope.factor, plain)
    blend = (rope.original_max_position / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1 - blend) * scaled / rope.factor + blend * scaled
    between = (wavelength >= shortest) & (wavelength <= longest)
    return torch.where(between, blended, scaled)


def _yarn(rope: RopeConfig, head_dim: int) -> Tensor:
    """Keep fast dimensions, interpolate slow ones, ramp between (YaRN, section 3.2)."""
    bases = _wave_bases(rope.theta, head_dim)
    low, high = _yarn_range(rope, head_dim)
    ramp = (torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)
    keep = 1 - ramp.clamp(0, 1)
    return 1.0 / (rope.factor * bases) * (1 - keep) + 1.0 / bases * keep


def _yarn_range(rope: RopeConfig, head_dim: int) -> tuple[float, float]:
    low = _yarn_dimension(rope, rope.beta_fast, head_dim)
    high = _yarn_dimension(rope, rope.beta_slow, head_dim)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    # A range of no width would divide by zero.
    return low, high + 0.001 if low == high else high


def _yarn_dimension(rope: RopeConfig, num_rotations: float, head_dim: int) -> float:
    """The dimension that turns ``num_rotations`` times over the original context."""
    assert rope.original_max_position is not None
    ratio = math.log(rope.original_max_position / (num_rotations * 2 * math.pi))
    return head_dim * ratio / (2 * math.log(rope.theta))


def _attention_scaling(rope: RopeConfig) -> float:
    if rope.kind != "yarn":
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return _mscale(rope.factor, rope.mscale) / _mscale(rope.factor, rope.mscale_all_dim)
    return _mscale(rope.factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0
