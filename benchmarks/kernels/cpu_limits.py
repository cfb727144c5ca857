"""The machine's own limits, by a small C++ program that is compiled for the occasion."""

import ctypes
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

_SOURCE = Path(__file__).with_suffix(".cpp")
_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-march=native")
_ROUNDS = 4_000_000
_VECTORS_PER_ROUND = 12
_READ_BYTES = 256 << 20
_REPEATS = 9


@dataclass(frozen=True, slots=True)
class CpuLimits:
    """The best of several tries with torch's number of threads."""

    flops_per_second: float  # float32 multiply-adds in registers, two operations each
    read_bytes_per_second: float  # of memory beyond every cache
    bfloat16_flops_per_second: float | None = None  # of processors that multiply bfloat16


def measure_limits() -> CpuLimits:
    """Raises ``OSError`` without a compiler."""
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "limits.so"
        command = [os.environ.get("CXX", "g++"), *_FLAGS, str(_SOURCE), "-o", str(path)]
        subprocess.run(command, check=True)
        library = ctypes.CDLL(str(path))
    library.multiply_adds.argtypes = [ctypes.c_int64]
    library.read_all.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    values = torch.ones(_READ_BYTES // 4)
    num_flops = threads * _ROUNDS * _VECTORS_PER_ROUND * library.lanes() * 2
    compute = best_seconds(lambda: library.multiply_adds(_ROUNDS), _REPEATS)
    read = best_seconds(lambda: library.read_all(values.data_ptr(), values.numel()), _REPEATS)
    pairs = None
    if hasattr(library, "multiply_add_pairs"):
        library.multiply_add_pairs.argtypes = [ctypes.c_int64]
        pairs = best_seconds(lambda: library.multiply_add_pairs(_ROUNDS), _REPEATS)
    return CpuLimits(num_flops / compute, _READ_BYTES / read, pairs and 2 * num_flops / pairs)


def best_seconds(run: Callable[[], object], repeats: int) -> float:
    """The fastest of ``repeats`` runs after a first one; on a shared host the rest is noise."""
    run()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
