"""Background threads that leave the processors to the thread whose work people wait for."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

import torch

# By value, and only for the thread that calls: OpenMP's number and MKL's.
_LIMITS: Final = ("omp_set_num_threads", "MKL_Set_Num_Threads_Local")


def compute_alone() -> None:
    """From here on the calling thread computes by itself what it asks of torch.

    OpenMP otherwise gives every thread that computes workers of its own. Once there are more
    workers than processors, libgomp lets those of all threads sleep between parallel regions
    instead of spinning, and each region of the main loop begins with waking somebody up.
    ``torch.set_num_threads`` would change MKL's number for every thread.
    """
    # Asked for the first time, torch sets the thread up with the process's number.
    torch.get_num_threads()
    _limit(1)


@contextmanager
def computing_alone() -> Iterator[None]:
    """``compute_alone`` for a while; afterwards the calling thread has its workers again.

    For many short operations: where another process computes, each of them would wait until the
    system lets a worker run.
    """
    before = torch.get_num_threads()
    _limit(1)
    try:
        yield
    finally:
        _limit(before)


def _limit(num_threads: int) -> None:
    library = _library()
    for name in _LIMITS:
        # A build without OpenMP or MKL has no workers of that kind.
        limit = getattr(library, name, None)
        if limit is not None:
            limit(num_threads)


@cache
def _library() -> ctypes.CDLL | None:
    """What torch computes with on processors, which is loaded already."""
    folder = Path(torch.__file__).parent / "lib"
    found = next(folder.glob("libtorch_cpu.*"), None)
    return ctypes.CDLL(str(found)) if found else None
