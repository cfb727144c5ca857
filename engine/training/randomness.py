"""Random streams by place: every draw is a function of the seed and of what it is drawn for.

There is no state to save: a resumed run draws what the uninterrupted one would have drawn, and a
layer that is run twice sees the same dropout.
"""

import hashlib
import random

import torch

Place = str | int


def seed_of(seed: int, *place: Place) -> int:
    """63 bits that belong to ``place``."""
    text = "/".join(map(str, (seed, *place)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def tensor_stream(seed: int, *place: Place, device: torch.device | None = None) -> torch.Generator:
    """A generator for tensors on ``device``."""
    generator = torch.Generator(device or torch.device("cpu"))
    return generator.manual_seed(seed_of(seed, *place))


def shuffled(count: int, seed: int, *place: Place) -> list[int]:
    """``range(count)`` in the random order that belongs to ``place``."""
    order = list(range(count))
    random.Random(seed_of(seed, *place)).shuffle(order)
    return order
