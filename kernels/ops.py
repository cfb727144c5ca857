"""`Ops`: every tensor operation that a backend provides. The docstrings are the definitions.

Shape letters used in the whole repository:

    T tokens in the batch    B requests        H hidden size       V vocabulary
    N output features        K input features  R rank              S key positions
    Q query heads            G kv heads        D head size         P block size (tokens)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .nf4 import Nf4Tensor


@dataclass(frozen=True, slots=True)
class DenseWeight:
    """An unquantized matrix [N, K] in the model's dtype."""

    data: Tensor

    @property
    def out_features(self) -> int:
        return self.data.shape[0]

    @property
    def num_bytes(self) -> int:
        return self.data.numel() * self.data.element_size()


@dataclass(frozen=True, slots=True)
class Nf4Weight:
    """An NF4 matrix in the layout of the backend that packed it.

    ``layout`` names that layout; ``tensors`` hold it and can be saved and loaded as they are.
    """

    layout: str
    tensors: dict[str, Tensor]
    out_features: int
    in_features: int
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors.values())


Weight = DenseWeight | Nf4Weight


@dataclass(frozen=True, slots=True)
class LoraPart:
    """The B factor of one slice of a stacked projection.

    ``b`` is [R, N_slice] in the model's dtype; it reads ranks ``[first_rank, first_rank + R)`` of
    the shrunk rows and writes columns from ``first_column``; ``scale`` is alpha/r (rsLoRA:
    alpha/sqrt(r)).
    """

    b: Tensor
    first_rank: int
    first_column: int
    scale: float


@dataclass(frozen=True, slots=True)
class LoraFactors:
    """One version at one projection: ``a`` [sum of R, K] stacks the A of all ``parts``."""

    a: Tensor
    parts: tuple[LoraPart, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows ``[start, stop)`` use the version in ``slot``, times ``weight``.

    Segments of a blend share their rows.
    """

    start: int
    stop: int
    slot: int
    weight: float = 1.0


# One projection's factors by slot; None where the version does not touch this projection.
LoraTable = Sequence[LoraFactors | None]


@dataclass(frozen=True, slots=True)
class LoraInput:
    """What a projection needs of the adapters in this batch."""

    table: LoraTable
    segments: Sequence[Segment]


@dataclass(frozen=True, slots=True)
class AttentionRun:
    """Query rows ``[start, stop)`` of one request, at positions from ``first_position``.

    ``block_table`` lists the request's KV blocks; it covers every position up to the last query.
    """

    start: int
    stop: int
    first_position: int
    block_table: Sequence[int]


class Ops(Protocol):
    """A backend: a module with these functions. Chosen once by ``choose_ops``.

    Rows of T are independent in every op: a row's result never depends on the values of another
    row. A backend with ``BATCH_INVARIANT`` true promises more: nor on how many rows there are.
    """

    @property
    def NAME(self) -> str: ...

    @property
    def BATCH_INVARIANT(self) -> bool: ...

    def describe(self) -> str:
        """What does the work on this machine, in a few words for people."""
        ...

    def pack_nf4(self, weight: Nf4Tensor, dtype: torch.dtype) -> Nf4Weight:
        """Bring canonical NF4 into this backend's layout for activations of ``dtype``."""
        ...

    def unpack_nf4(self, weight: Nf4Weight, dtype: torch.dtype) -> Tensor:
        """Decode a packed weight to a dense [N, K] matrix of ``dtype``."""
        ...

    def linear(
        self, x: Tensor, weight: Weight, bias: Tensor | None, lora: LoraInput | None
    ) -> Tensor:
        """``x @ W.T + bias`` and, for each segment, ``weight * scale * (x @ A.T) @ B`` on its rows.

        x [T, K], bias [N] or None -> [T, N] in x's dtype. Deltas are added segment by segment, only
        to the rows of the segment: NaN in one version cannot reach rows of another.
        """
        ...

    def embedding(self, ids: Tensor, table: Tensor) -> Tensor:
        """ids int64 [T], table [V, H] -> [T, H]."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension, in float32 inside."""
        ...

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """``residual + x`` and its RMS norm: (normed [T, H], new residual [T, H])."""
        ...

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """gate_up [T, 2 * I] -> ``silu(gate) * up`` [T, I]."""
        ...

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotary embedding in the half-split form: x [T, heads, D]; cos, sin float32 [T, D / 2]."""
        ...

    def write_kv(
        self, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, rows: Tensor
    ) -> None:
        """Store k, v [T, G, D] at flat rows int64 [T] (block * P + offset) of the caches.

        Caches are [num_blocks, P, G, D]; written in place.
        """
        ...

    def plan_attention(
        self,
        runs: Sequence[AttentionRun],
        *,
        block_size: int,
        window: int | None,
        device: torch.device,
    ) -> Any:
        """Everything about this step's attention that no layer changes; opaque to the caller.

        A query at position p sees positions ``max(0, p - window + 1) .. p``. Called once per step
        for each distinct window of the model.
        """
        ...

    def paged_attention(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, plan: Any, scale: float
    ) -> Tensor:
        """Causal attention of q [T, Q, D] over the paged caches -> [T, Q, D].

        Query head h reads kv head ``h // (Q / G)``. Softmax in float32.
        """
        ...
