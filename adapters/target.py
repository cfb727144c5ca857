"""What an adapter may attach to: the modules of one base model, by PEFT path and shape."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class TargetModule:
    """A module as PEFT sees it: its path inside the checkpoint and its shape [N, K].

    The head is a linear too, but not one of PEFT's "all-linear". An embedding maps K tokens to N
    features; its weight is stored as [K, N].
    """

    path: str
    out_features: int
    in_features: int
    has_bias: bool = False
    kind: Literal["linear", "head", "embedding"] = "linear"

    @property
    def weight_shape(self) -> tuple[int, int]:
        if self.kind == "embedding":
            return self.in_features, self.out_features
        return self.out_features, self.in_features


@dataclass(frozen=True, slots=True)
class Projection:
    """One stacked matmul of the decoder: its slices lie one after the other along N.

    ``kind`` is ``qkv``, ``o``, ``gate_up``, ``down``, ``head`` or ``embedding``; the last two
    belong to no layer, and ``layer`` is the number of layers.
    """

    layer: int
    kind: str
    slices: tuple[TargetModule, ...]

    @property
    def in_features(self) -> int:
        return self.slices[0].in_features

    @property
    def out_features(self) -> int:
        return sum(part.out_features for part in self.slices)
