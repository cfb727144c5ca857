"""What is trained at one projection of the base."""

from dataclasses import dataclass

from torch import Tensor

from multiflora.kernels.ops import LoraPart


@dataclass(frozen=True, slots=True)
class ProjectionFactors:
    """A [sum of R, K] and, by part, B transposed [R, N_slice], as serving has them.

    ``magnitudes`` are DoRA's, float32 [N_slice] of every part; empty for plain LoRA.
    """

    a: Tensor
    parts: tuple[LoraPart, ...]
    magnitudes: tuple[Tensor, ...] = ()

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.a, *(part.b for part in self.parts), *self.magnitudes


def ranks_of(part: LoraPart) -> slice:
    """The rows of A that belong to ``part``."""
    return slice(part.first_rank, part.first_rank + part.b.shape[0])


def columns_of(part: LoraPart) -> slice:
    """The outputs that ``part`` writes."""
    return slice(part.first_column, part.first_column + part.b.shape[1])
