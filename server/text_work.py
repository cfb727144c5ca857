"""Reads, encodes and decodes texts of clients beside the event loop, so much of it at a time."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Final, ParamSpec, TypeVar

from .refusal import QueueFull

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

# 8 KiB take up to 8 ms, which nobody notices who waits for the event loop meanwhile.
_INLINE_BYTES: Final = 8 * 1024
# Encoding needs some 200 bytes of memory for each, so texts above this go a few at a time.
_LARGE_BYTES: Final = 256 * 1024
_BYTES_PER_SECOND: Final = 1024 * 1024
_MOST_SECONDS: Final = 16.0
_LEAST_SECONDS: Final = 0.1


class TextWork:
    """Small work is done at once; all other waits for a thread, large texts for one of fewer.

    So a large text delays large texts alone. Who would wait for too long is refused.
    """

    def __init__(self, *, num_cores: int | None = None) -> None:
        num_cores = num_cores or os.cpu_count() or 1
        self._small = _Lane("text", max(2, num_cores // 2))
        self._large = _Lane("large-text", max(1, num_cores // 4))

    async def run(
        self,
        num_bytes: int,
        work: Callable[_Parameters, _Result],
        *args: _Parameters.args,
        **kwargs: _Parameters.kwargs,
    ) -> _Result:
        """What ``work`` returns of a text of about ``num_bytes``. Raises ``QueueFull``."""
        if num_bytes <= _INLINE_BYTES:
            return work(*args, **kwargs)
        lane = self._large if num_bytes > _LARGE_BYTES else self._small
        return await lane.run(num_bytes, partial(work, *args, **kwargs))


class _Lane:
    """Threads and what was given to them; all methods belong to one event loop."""

    def __init__(self, name: str, num_threads: int) -> None:
        self._threads = ThreadPoolExecutor(num_threads, name)
        self._bytes_per_second = num_threads * _BYTES_PER_SECOND
        self._num_bytes = 0

    async def run(self, num_bytes: int, work: Callable[[], _Result]) -> _Result:
        wait = self._num_bytes / self._bytes_per_second
        if wait > _MOST_SECONDS:
            raise QueueFull(
                "too much text waits to be read; try again later, or on another replica",
                retry_after_seconds=max(wait - _MOST_SECONDS, _LEAST_SECONDS),
            )
        self._num_bytes += num_bytes
        loop = asyncio.get_running_loop()
        future = self._threads.submit(work)

        def leave(_: object) -> None:
            # A thread goes on when nobody waits any more, and may outlive the loop.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._leave, num_bytes)

        future.add_done_callback(leave)
        return await asyncio.wrap_future(future)

    def _leave(self, num_bytes: int) -> None:
        self._num_bytes -= num_bytes
