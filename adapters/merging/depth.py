"""How far a merge goes in each module: one number, or a curve over the depth of the model."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Curve:
    """Numbers in [0, 1], spread evenly over the layers and linear in between.

    Raises ``ValueError`` for an empty curve or a number outside that range.
    """

    points: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.points:
            raise ValueError("t is empty; give a number, or several over the layers")
        for point in self.points:
            if not 0 <= point <= 1:
                raise ValueError(f"t is {point}; it must be between 0 and 1")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``0.3`` or ``0,0.5,1``. Raises ``ValueError``."""
        try:
            points = tuple(float(part) for part in text.split(","))
        except ValueError:
            raise ValueError(f"t is {text[:40]!r}; give a number, or several as 0,0.5,1") from None
        return cls(points)

    def at(self, depth: float) -> float:
        """The value at ``depth``, from 0 (first layer) to 1 (last)."""
        position = depth * (len(self.points) - 1)
        left = min(int(position), len(self.points) - 1)
        right = min(left + 1, len(self.points) - 1)
        share = position - left
        return (1 - share) * self.points[left] + share * self.points[right]

    def __str__(self) -> str:
        return ",".join(map(str, self.points))


@dataclass(frozen=True, slots=True)
class Filter:
    """A curve of its own for the modules whose path contains ``match``."""

    match: str
    curve: Curve

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``self_attn=0.3`` or ``mlp=0,1``. Raises ``ValueError``."""
        match, separator, points = text.rpartition("=")
        if not separator or not match:
            raise ValueError(f"{text[:40]!r} is not MATCH=T, such as self_attn=0.3")
        return cls(match, Curve.parse(points))


def layer_of(path: str) -> int | None:
    """The number of the layer that the module is in, if it is in one."""
    found = _LAYER.search(path)
    return int(found[1]) if found else None


def values_of_t(
    paths: Sequence[str], curve: Curve, filters: Sequence[Filter] = ()
) -> dict[str, float]:
    """``t`` of every module; the first filter that fits counts. What is in no layer is at the end.

    Raises ``ValueError`` for a filter that fits no module.
    """
    for one in filters:
        if not any(one.match in path for path in paths):
            raise ValueError(f"filter {one.match!r} fits no module, such as {paths[0]}")
    layers = {path: layer_of(path) for path in paths}
    last = max((layer for layer in layers.values() if layer is not None), default=0)
    values = {}
    for path, layer in layers.items():
        chosen = next((one.curve for one in filters if one.match in path), curve)
        values[path] = chosen.at(1.0 if layer is None else layer / max(1, last))
    return values
