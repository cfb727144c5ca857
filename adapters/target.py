"""What an adapter may attach to: the linear modules of one base model, by PEFT path and shape."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TargetModule:
    """A linear module as PEFT sees it: its path inside the checkpoint and its shape [N, K]."""

    path: str
    out_features: int
    in_features: int


@dataclass(frozen=True, slots=True)
class Projection:
    """One stacked matmul of the decoder: its slices lie one after the other along N.

    ``kind`` is ``qkv``, ``o``, ``gate_up`` or ``down``.
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
