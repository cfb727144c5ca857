"""The compiled core through ctypes; absent where it was not built or the processor is too old."""

import ctypes
from functools import cache

import torch
from torch import Tensor

from ..ops import LoraFactors
from .build import core_path

_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class Core:
    """float32 matmuls and LoRA deltas; every output element is one fixed sum."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._nf4_matmul = _declare(library, "nf4_matmul", [_POINTER] * 4 + [_INT] * 3)
        self._nf4_unpack = _declare(library, "nf4_unpack", [_POINTER] * 3 + [_INT] * 2)
        self._dense_matmul = _declare(library, "dense_matmul", [_POINTER] * 3 + [_INT] * 3)
        self._shrink = _declare(library, "lora_shrink", [_POINTER] * 3 + [_INT] * 3)
        self._expand = _declare(
            library,
            "lora_expand",
            [_POINTER, _INT, _POINTER, _INT, _FLOAT, _POINTER, _INT, _INT, _INT],
        )

    def nf4_matmul(self, x: Tensor, words: Tensor, absmax: Tensor) -> Tensor:
        """x [M, K], words int32 [N / 16, K, 2], absmax [N / 16, K / 64, 16] -> [M, N]."""
        num_rows, num_columns = x.shape
        y = x.new_empty(num_rows, words.shape[0] * 16)
        self._nf4_matmul(
            x.data_ptr(),
            words.data_ptr(),
            absmax.data_ptr(),
            y.data_ptr(),
            num_rows,
            y.shape[1],
            num_columns,
        )
        return y

    def nf4_unpack(self, words: Tensor, absmax: Tensor) -> Tensor:
        """words int32 [N / 16, K, 2], absmax [N / 16, K / 64, 16] -> [N, K]."""
        w = absmax.new_empty(words.shape[0] * 16, words.shape[1])
        self._nf4_unpack(words.data_ptr(), absmax.data_ptr(), w.data_ptr(), *w.shape)
        return w

    def dense_matmul(self, x: Tensor, weight: Tensor) -> Tensor:
        """x [M, K], weight [N, K] -> [M, N]."""
        y = x.new_empty(x.shape[0], weight.shape[0])
        self._dense_matmul(x.data_ptr(), weight.data_ptr(), y.data_ptr(), x.shape[0], *weight.shape)
        return y

    def add_delta(
        self, y: Tensor, x: Tensor, factors: LoraFactors, start: int, stop: int, weight: float
    ) -> None:
        """Add one segment's delta in place to rows ``[start, stop)`` of y [T, N]; x is [T, K]."""
        num_rows, (num_ranks, num_columns) = stop - start, factors.a.shape
        shrunk = x.new_empty(num_rows, num_ranks)
        first_x = x.data_ptr() + 4 * start * num_columns
        self._shrink(
            first_x, factors.a.data_ptr(), shrunk.data_ptr(), num_rows, num_ranks, num_columns
        )
        width = y.shape[1]
        first_v, first_y = shrunk.data_ptr(), y.data_ptr() + 4 * start * width
        for part in factors.parts:
            self._expand(
                first_v + 4 * part.first_rank,
                num_ranks,
                part.b.data_ptr(),
                part.b.shape[0],
                weight * part.scale,
                first_y + 4 * part.first_column,
                width,
                num_rows,
                part.b.shape[1],
            )


def _declare(library: ctypes.CDLL, name: str, arguments: list[type]) -> "ctypes._NamedFuncPointer":
    function = getattr(library, f"multiflora_{name}")
    function.argtypes, function.restype = arguments, None
    return function


@cache
def load_core() -> Core | None:
    """The compiled core, or None: then torch's own matmuls serve."""
    path = core_path()
    if not path.exists():
        return None
    # torch is loaded by now, so the core shares its OpenMP runtime and its thread count.
    assert torch.get_num_threads() > 0
    library = ctypes.CDLL(str(path))
    return Core(library) if library.multiflora_core_supported() else None
