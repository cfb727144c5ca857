"""Rotation and cache writes as in plain torch, with this backend's batch-invariant norm."""

from functools import partial

from ..torch_ops import rotary
from .norm import rms_norm

rotate_and_cache = partial(rotary.rotate_and_cache, rms_norm=rms_norm)
