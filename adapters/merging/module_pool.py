"""Modules side by side, each on one thread."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def side_by_side(work: Callable[[T], R], items: Iterable[T]) -> Iterator[Iterator[R]]:
    """``work`` of each of ``items`` in their order, as many at a time as torch has threads.

    Thin factors are too small to be shared out one operation at a time. Each item sees one thread,
    so that sums, and with them the bits of a result, do not depend on how many there are. What was
    not begun when the block ends or raises is dropped.
    """
    num_threads = torch.get_num_threads()
    # The number is a thread's own, and what later threads start with.
    pool = ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(num_threads)


@contextmanager
def one_by_one(work: Callable[[T], R], items: Iterable[T]) -> Iterator[Iterator[R]]:
    """As ``side_by_side``, one at a time on all threads: for items too large to hold several of."""
    yield map(work, items)
