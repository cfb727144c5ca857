"""`Ops`: every tensor operation that a backend provides. The docstrings are the definitions.

Shape letters used in the whole repository:

    T tokens in the batch    B requests        H hidden size       V vocabulary
    N output features        K input features  R rank              S key positions
    Q query heads            G kv heads        D head size         P block size (tokens)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .nf4 import Nf4Tensor


@dataclass(frozen=True, slots=True)
class DenseWeight:
    """An unquantized matrix [N, K] in the model's dtype, or as ``Ops.table_dtype`` says."""

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


class LoraTables(Protocol):
    """The factors of all resident versions by projection and slot, where the backend reads them."""

    def write(self, slot: int, factors: Mapping[int, LoraFactors]) -> None:
        """Fill ``slot`` with a version's factors by projection; what it skips becomes empty.

        Between steps only. The tensors stay alive and in place until the slot is written again.
        """
        ...

    def clear(self, slot: int) -> None: ...

    @property
    def generation(self) -> int:
        """Changes when the tables have moved and a captured graph must not be replayed."""
        ...

    @property
    def max_rank(self) -> int | None:
        """The largest rank of one factor that the backend takes; None without a limit."""
        ...

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and ranks that are computed at least where any of a segment's are."""
        ...

    def projection(self, index: int) -> Any:
        """The table of one projection, as ``linear`` takes it: valid for good, whatever is written
        later."""
        ...


@dataclass(frozen=True, slots=True)
class LoraInput:
    """What a projection needs of the adapters in this batch.

    ``table`` comes from ``LoraTables.projection``, ``plan`` from ``plan_lora``.
    """

    table: Any
    plan: Any


@dataclass(frozen=True, slots=True)
class AttentionRun:
    """Query rows ``[start, stop)`` of one request, at positions from ``first_position``.

    ``block_table`` lists the request's KV blocks; it covers every position up to the last query.
    """

    start: int
    stop: int
    first_position: int
    block_table: Sequence[int]


@dataclass(frozen=True, slots=True)
class HeadShape:
    """How the columns of a stacked qkv projection divide into heads."""

    num_heads: int
    num_kv_heads: int
    size: int


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """RMS norms of each query and key head before rotation (Qwen3); weights are [D]."""

    q: Tensor
    k: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class RopeTable:
    """Rotary angles of every position that can occur: float32 [positions, D / 2] each."""

    cos: Tensor
    sin: Tensor


class Staging(Protocol):
    """Carries a step's integers to the device.

    ``place`` returns where they will be when the step's kernels run: perhaps not yet. A static
    staging gives every call of a step the same place as in the step before, so that a captured
    graph finds new values under old addresses; values then fill at most ``capacity``.
    """

    @property
    def device(self) -> torch.device: ...

    @property
    def is_static(self) -> bool: ...

    def place(self, values: Sequence[int], *, capacity: int | None = None) -> Tensor:
        """An integer tensor [capacity or the number of values]; what is beyond them is undefined
        in a static staging."""
        ...


class Ops(Protocol):
    """A backend: a module or an object with these functions. Chosen once by ``choose_ops``.

    Rows of T are independent in every op: a row's result never depends on the values of another
    row. A backend with ``BATCH_INVARIANT`` true promises more: nor on how many rows there are.
    """

    @property
    def NAME(self) -> str: ...

    @property
    def BATCH_INVARIANT(self) -> bool: ...

    @property
    def MASKS_UNWRITTEN_KV(self) -> bool:
        """Whether attention never reads cache rows beyond a query's own position.

        Without it they are read and multiplied by zero, so they must hold finite values.
        """
        ...

    def describe(self) -> str:
        """What does the work on this machine, in a few words for people."""
        ...

    def table_dtype(self, stored: torch.dtype, dtype: torch.dtype) -> torch.dtype:
        """What an embedding or head of ``stored`` is held in, for activations of ``dtype``.

        Narrower than ``dtype`` only where ``linear`` then gives the very bits of a wide copy.
        """
        ...

    def pack_nf4(self, weight: Nf4Tensor, dtype: torch.dtype) -> Nf4Weight:
        """Bring canonical NF4 into this backend's layout for activations of ``dtype``."""
        ...

    def unpack_nf4(self, weight: Nf4Weight, dtype: torch.dtype) -> Tensor:
        """Decode a packed weight to a dense [N, K] matrix of ``dtype``."""
        ...

    def slice_nf4(self, weight: Nf4Weight, start: int, stop: int) -> Nf4Weight:
        """Rows ``[start, stop)`` of a packed weight as one, in the same memory, to be unpacked.

        ``start`` is a multiple of 128, and so is ``stop`` unless it is N.
        """
        ...

    def make_lora_tables(self, widths: Sequence[Sequence[int]], device: torch.device) -> LoraTables:
        """Empty tables; ``widths`` are the output columns of each projection's stacked slices."""
        ...

    def plan_lora(self, segments: Sequence[Segment], *, num_rows: int, staging: Staging) -> Any:
        """Everything about this step's adapters that no projection changes; opaque to the caller.

        ``num_rows`` is T; with a static staging it may exceed the rows that segments cover, and the
        plan's ``graph_key`` tells which captured step it fits. Raises ``StagingOverflow`` if it
        fits none.
        """
        ...

    def linear(
        self, x: Tensor, weight: Weight, bias: Tensor | None, lora: LoraInput | None
    ) -> Tensor:
        """``x @ W.T + bias`` and, for each segment, ``weight * scale * (x @ A.T) @ B`` on its rows.

        x [T, K], bias [N] or None -> [T, N] in x's dtype. Deltas are added segment by segment, only
        to the rows of the segment: NaN in one version cannot reach rows of another.
        """
        ...

    def input_gradient(self, dy: Tensor, weight: Weight) -> Tensor:
        """``dy @ W``, what flows back through ``linear``: dy [T, N] -> [T, K] in dy's dtype."""
        ...

    def embedding(self, ids: Tensor, table: Tensor) -> Tensor:
        """ids int64 [T], table [V, H] -> [T, H] in the table's dtype."""
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

    def rotate_and_cache(
        self,
        qkv: Tensor,
        heads: HeadShape,
        norm: HeadNorm | None,
        rope: RopeTable,
        positions: Tensor,
        cache: tuple[Tensor, Tensor],
        cache_rows: Tensor,
    ) -> Tensor:
        """Split qkv [T, (Q + 2 G) * D], norm and rotate q and k, store k and v; returns q.

        q is [T, Q, D]. Rotation is the half-split form at integer ``positions`` [T]. Keys and
        values go to the flat rows ``cache_rows`` [T] (block * P + offset) of the caches
        [num_blocks, P, G, D], in place; a negative row, which occurs with static staging only, is
        not stored.
        """
        ...

    def plan_attention(
        self,
        runs: Sequence[AttentionRun],
        *,
        num_rows: int,
        block_size: int,
        window: int | None,
        max_context: int,
        staging: Staging,
    ) -> Any:
        """Everything about this step's attention that no layer changes; opaque to the caller.

        A query at position p sees positions ``max(0, p - window + 1) .. p``. Called once per step
        for each distinct window of the model. ``num_rows`` is T; rows of no run have no defined
        result. ``max_context`` is the longest request that can occur, in tokens. Static staging as
        in ``plan_lora``.
        """
        ...

    def paged_attention(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, plan: Any, scale: float
    ) -> Tensor:
        """Causal attention of q [T, Q, D] over the paged caches -> [T, Q, D].

        Query head h reads kv head ``h // (Q / G)``. Softmax in float32.
        """
        ...

    def peaks(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Of each row of logits [B, V]: the first of its largest, int64 [B], and whether all of it
        is finite, bool [B]. The index of a row that is not finite is undefined."""
        ...

    def top_k(self, logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The largest ``count`` of each row, falling, and their ids, int64: both [B, count].

        Which of equal logits are among them, and in what order, is the backend's choice.
        """
        ...

    def weight_sums(self, logits: Tensor, temperatures: Tensor) -> Tensor:
        """The sum over each row of ``exp((logit - largest) / temperature)``: float64 [B].

        Temperatures are float64 [B], above zero. Logits of minus infinity weigh nothing.
        """
        ...

    def draw(self, logits: Tensor, temperatures: Tensor, points: Tensor) -> Tensor:
        """The first id where the running sum of a row's weights, as in ``weight_sums``, exceeds
        ``point`` times all of it: int64 [B]. Points are float64 [B] in [0, 1)."""
        ...
