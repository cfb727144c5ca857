"""The compiled core through ctypes; absent where it was not built or the processor is too old."""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, bfloat16, float32

from ..ops import HeadNorm, HeadShape, RopeTable
from .build import core_path
from .processor import tiers

# Element types that the core reads and writes; it computes in float32 always.
DTYPES = (float32, bfloat16)
# Element types of files that it reads.
FILE_DTYPES = (float32, bfloat16, torch.float16)
# Heads of any size up to this are rotated, and those of a multiple of LANES are attended.
MOST_HEAD_SIZE, LANES = 512, 8
# bfloat16 rows that are multiplied by bfloat16 weights have a multiple of this many columns.
PAIRED_COLUMNS = 32
# Gradients flow back through unquantized weights with a multiple of this many columns.
BLOCK_COLUMNS = 64
_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class Core:
    """All tensors are contiguous, of types in ``DTYPES`` but for files; matmuls give float32.

    Every output element is one fixed chain of operations, whatever shares the call with it.
    """

    multiplies_bfloat16: bool
    """Whether matmuls take bfloat16 activations: then, and only then, by bfloat16 products."""

    def __init__(self, path: Path, tier: str) -> None:
        library = ctypes.CDLL(str(path))
        self.tier = tier

        def one(name: str, arguments: Sequence[type]) -> "ctypes._NamedFuncPointer":
            function = getattr(library, f"multiflora_{name}")
            function.argtypes, function.restype = list(arguments), None
            return function

        def both(
            name: str, arguments: Sequence[type]
        ) -> "dict[torch.dtype, ctypes._NamedFuncPointer]":
            return {dtype: one(f"{name}_{str(dtype)[6:]}", arguments) for dtype in DTYPES}

        self.multiplies_bfloat16 = hasattr(library, "multiflora_nf4_matmul_bfloat16")
        activations = DTYPES if self.multiplies_bfloat16 else (float32,)
        self._nf4_matmul, self._nf4_backward = (
            {
                dtype: one(f"{name}_{str(dtype)[6:]}", [_POINTER] * 4 + [_INT] * 3)
                for dtype in activations
            }
            for name in ("nf4_matmul", "nf4_backward")
        )
        self._dense_backward = both("dense_backward", [_POINTER] * 3 + [_INT] * 3)
        self._nf4_unpack = one("nf4_unpack", [_POINTER] * 3 + [_INT] * 2)
        self._dense_matmul = both("dense_matmul", [_POINTER] * 3 + [_INT] * 3)
        if self.multiplies_bfloat16:
            self._dense_matmul_of_pairs = one("dense_matmul_of_pairs", [_POINTER] * 3 + [_INT] * 3)
            self._dense_backward_of_pairs = one(
                "dense_backward_of_pairs", [_POINTER] * 3 + [_INT] * 3
            )
        self._lora = both("lora", [_POINTER] * 4 + [_INT] * 3)
        self._lora_of_bfloat16_rows = one("lora_bfloat16_rows", [_POINTER] * 4 + [_INT] * 3)
        self._round = one("round", [_POINTER] * 2 + [_INT])
        self._attention = both(
            "attention",
            [_POINTER] * 5 + [_INT, _POINTER] + [_INT] * 5 + [_FLOAT] + [_INT] * 2,
        )
        self._norm = both("norm", [_POINTER] * 3 + [_FLOAT] + [_POINTER] * 2 + [_INT] * 2)
        self._silu_mul = both("silu_mul", [_POINTER] * 2 + [_INT] * 2)
        self._rotate = both(
            "rotate_and_cache", [_POINTER] * 3 + [_FLOAT] + [_POINTER] * 7 + [_INT] * 4
        )
        self._copy_matrices = both("copy_matrices", [_POINTER, _POINTER, _INT, _POINTER])
        self._peaks = one("peaks", [_POINTER] * 3 + [_INT] * 2)
        self._top_k = one("top_k", [_POINTER, _INT, _POINTER, _POINTER] + [_INT] * 2)
        self._weight_sums = one("weight_sums", [_POINTER] * 3 + [_INT] * 2)
        self._draw = one("draw", [_POINTER] * 4 + [_INT] * 2)

    def nf4_matmul(self, x: Tensor, codes: Tensor, absmax: Tensor) -> Tensor:
        """x [M, K], codes uint8 [N / 16, K / 4, 32], absmax [N / 16, K / 64, 16] -> [M, N]."""
        y = x.new_empty(x.shape[0], codes.shape[0] * 16, dtype=float32)
        self._nf4_matmul[x.dtype](
            x.data_ptr(), codes.data_ptr(), absmax.data_ptr(), y.data_ptr(), *y.shape, x.shape[1]
        )
        return y

    def nf4_backward(self, y: Tensor, codes: Tensor, absmax: Tensor) -> Tensor:
        """y [M, N], codes and absmax as of ``nf4_matmul`` -> ``y @ W`` [M, K]."""
        x = y.new_empty(y.shape[0], codes.shape[1] * 4, dtype=float32)
        self._nf4_backward[y.dtype](
            y.data_ptr(), codes.data_ptr(), absmax.data_ptr(), x.data_ptr(), *y.shape, x.shape[1]
        )
        return x

    def nf4_unpack(self, codes: Tensor, absmax: Tensor) -> Tensor:
        """codes uint8 [N / 16, K / 4, 32], absmax [N / 16, K / 64, 16] -> [N, K]."""
        w = absmax.new_empty(codes.shape[0] * 16, codes.shape[1] * 4)
        self._nf4_unpack(codes.data_ptr(), absmax.data_ptr(), w.data_ptr(), *w.shape)
        return w

    def dense_matmul(self, x: Tensor, weight: Tensor) -> Tensor:
        """x [M, K], weight [N, K] -> float32 [M, N].

        x is float32, or bfloat16 as weight is with K a multiple of ``PAIRED_COLUMNS``.
        """
        y = x.new_empty(x.shape[0], weight.shape[0], dtype=float32)
        is_paired = x.dtype == bfloat16
        multiply = self._dense_matmul_of_pairs if is_paired else self._dense_matmul[weight.dtype]
        multiply(x.data_ptr(), weight.data_ptr(), y.data_ptr(), x.shape[0], *weight.shape)
        return y

    def add_deltas(
        self,
        y: Tensor,
        x: Tensor,
        dtype: torch.dtype,
        versions: ctypes.Array,
        segments: ctypes.Array,
    ) -> None:
        """Add all segments' deltas in place to y float32 [T, N].

        ``dtype`` is that of the factors; x [T, K] is float32, or bfloat16 as they are.
        """
        add = self._lora[dtype] if x.dtype == float32 else self._lora_of_bfloat16_rows
        counts = len(segments), x.shape[1], y.shape[1]
        add(x.data_ptr(), y.data_ptr(), versions, segments, *counts)

    def round(self, x: Tensor) -> Tensor:
        """x float32 -> the nearest bfloat16, ties to even."""
        out = torch.empty_like(x, dtype=bfloat16)
        self._round(x.data_ptr(), out.data_ptr(), x.numel())
        return out

    def dense_backward(self, y: Tensor, weight: Tensor) -> Tensor:
        """y [M, N], weight [N, K] -> float32 ``y @ W`` [M, K].

        y is float32, or bfloat16 as weight is. K is a multiple of ``BLOCK_COLUMNS``.
        """
        x = y.new_empty(y.shape[0], weight.shape[1], dtype=float32)
        is_paired = y.dtype == bfloat16
        backward = (
            self._dense_backward_of_pairs if is_paired else self._dense_backward[weight.dtype]
        )
        backward(y.data_ptr(), weight.data_ptr(), x.data_ptr(), y.shape[0], *weight.shape)
        return x

    def attention(
        self,
        q: Tensor,
        caches: tuple[Tensor, Tensor],
        tasks: Tensor,
        blocks: Tensor,
        *,
        window: int | None,
        scale: float,
        num_pairs: int,
        most_rows: int,
    ) -> Tensor:
        """q [T, Q, D] over caches [num_blocks, P, G, D], D a multiple of ``LANES``.

        tasks int64 [tasks, 4]: first row, rows, first position, first block in ``blocks``.
        """
        k_cache, v_cache = caches
        _, block_size, num_kv_heads, head_dim = k_cache.shape
        out = torch.empty_like(q)
        self._attention[q.dtype](
            q.data_ptr(),
            k_cache.data_ptr(),
            v_cache.data_ptr(),
            out.data_ptr(),
            tasks.data_ptr(),
            len(tasks),
            blocks.data_ptr(),
            q.shape[1],
            num_kv_heads,
            head_dim,
            block_size,
            window or 0,
            scale,
            num_pairs,
            most_rows,
        )
        return out

    def norm(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """x [.., H] -> the RMS norm of x + residual, and that sum (x itself without a residual)."""
        out = torch.empty_like(x)
        total = x if residual is None else torch.empty_like(x)
        size = x.shape[-1]
        self._norm[x.dtype](
            x.data_ptr(),
            None if residual is None else residual.data_ptr(),
            weight.data_ptr(),
            eps,
            total.data_ptr(),
            out.data_ptr(),
            x.numel() // size,
            size,
        )
        return out, total

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """[T, 2 * I] -> [T, I]."""
        num_rows, width = gate_up.shape
        out = gate_up.new_empty(num_rows, width // 2)
        self._silu_mul[gate_up.dtype](gate_up.data_ptr(), out.data_ptr(), num_rows, width // 2)
        return out

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
        """As ``Ops.rotate_and_cache``; positions and cache rows are int64."""
        q = qkv.new_empty(qkv.shape[0], heads.num_heads, heads.size)
        self._rotate[qkv.dtype](
            qkv.data_ptr(),
            norm and norm.q.data_ptr(),
            norm and norm.k.data_ptr(),
            norm.eps if norm else 0.0,
            rope.cos.data_ptr(),
            rope.sin.data_ptr(),
            positions.data_ptr(),
            cache[0].data_ptr(),
            cache[1].data_ptr(),
            cache_rows.data_ptr(),
            q.data_ptr(),
            len(qkv),
            heads.num_heads,
            heads.num_kv_heads,
            heads.size,
        )
        return q

    def copy_matrices(self, source: Tensor, copies: Tensor, target: Tensor) -> None:
        """source uint8 [bytes], copies int64 [C, 6] -> target [elements], on this thread alone.

        A copy is: source byte, target element, rows and columns of the target, the place of its
        type in ``FILE_DTYPES``, whether it lies transposed. Nobody checks that they are inside.
        """
        self._copy_matrices[target.dtype](
            source.data_ptr(), copies.data_ptr(), len(copies), target.data_ptr()
        )

    def peaks(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """As ``Ops.peaks``, of float32 logits; so are those below."""
        best = logits.new_empty(len(logits), dtype=torch.int64)
        is_finite = logits.new_empty(len(logits), dtype=torch.bool)
        self._peaks(logits.data_ptr(), best.data_ptr(), is_finite.data_ptr(), *logits.shape)
        return best, is_finite

    def top_k(self, logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """As ``Ops.top_k``; of equal logits the lower ids, in their order."""
        values = logits.new_empty(len(logits), count)
        ids = logits.new_empty(len(logits), count, dtype=torch.int64)
        self._top_k(logits.data_ptr(), count, values.data_ptr(), ids.data_ptr(), *logits.shape)
        return values, ids

    def weight_sums(self, logits: Tensor, temperatures: Tensor) -> Tensor:
        sums = torch.empty_like(temperatures)
        self._weight_sums(
            logits.data_ptr(), temperatures.data_ptr(), sums.data_ptr(), *logits.shape
        )
        return sums

    def draw(self, logits: Tensor, temperatures: Tensor, points: Tensor) -> Tensor:
        drawn = torch.empty_like(points, dtype=torch.int64)
        self._draw(
            logits.data_ptr(),
            temperatures.data_ptr(),
            points.data_ptr(),
            drawn.data_ptr(),
            *logits.shape,
        )
        return drawn


@cache
def load_core() -> Core | None:
    """The best compiled core for this processor, or None: then torch's own operations serve."""
    # torch is loaded by now, so the core shares its OpenMP runtime and its thread count.
    assert torch.get_num_threads() > 0
    built = ((tier, core_path(tier)) for tier in tiers())
    return next((Core(path, tier) for tier, path in built if path.exists()), None)


def core_for(dtype: torch.dtype) -> Core | None:
    """The core if it is there and reads ``dtype``."""
    return load_core() if dtype in DTYPES else None


def table_dtype(stored: torch.dtype, dtype: torch.dtype) -> torch.dtype:
    """The core widens bfloat16 exactly, and half the bytes are half the time of a small batch."""
    return bfloat16 if (stored, dtype) == (bfloat16, float32) and load_core() else dtype
