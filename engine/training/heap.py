"""How the C library treats the large blocks that training takes and frees all the time.

glibc maps blocks of over 32 MiB afresh every time, and the kernel clears each page when it is first
touched: a matrix of 8.7 million weights is decoded in 28 ms into such a block, and in 3 ms into one
that was used before (two-core EPYC 7003, a virtual machine). Other libraries are left as they are.
"""

import ctypes
from functools import cache
from typing import Final

# Parameters of mallopt(3).
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_LARGEST_BLOCK: Final = 1 << 30
_KEPT_BYTES: Final = (1 << 31) - 1


def keep_freed_memory() -> None:
    """From here on large blocks come from the heap, and what is freed stays there."""
    library = _library()
    if hasattr(library, "mallopt"):
        library.mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def return_freed_memory() -> None:
    """Give the kernel back what is free."""
    library = _library()
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None)
