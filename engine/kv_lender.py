"""Idle blocks of the KV cache, lent to adapters until requests need them."""

import time
from collections.abc import Callable

from multiflora.adapters.loan import Loan

from .kv_arena import KvArena
from .kv_blocks import BlockPool

# One block in so many stays in the pool, idle: new requests find room at once.
_IDLE_SHARE = 8
# After a loan was called in: what is lent and called in at every step only costs copies.
_PAUSE_SECONDS = 1.0


class KvLender:
    """Lends at most ``max_blocks`` blocks in all."""

    def __init__(
        self,
        pool: BlockPool,
        arena: KvArena,
        *,
        max_blocks: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._arena = arena
        self._max_blocks = max_blocks
        self._clock = clock
        self._paused_until = float("-inf")

    def lend(self, num_elements: int, *, is_urgent: bool) -> Loan | None:
        count = -(-num_elements // self._arena.block_elements)
        if self._pool.num_lent + count > self._max_blocks or self._clock() < self._paused_until:
            return None
        keep = self._pool.num_blocks // _IDLE_SHARE
        first = self._pool.lend(count, keep=keep, only_empty=not is_urgent)
        if first is None:
            return None
        return Loan(self._arena.run(first, count)[:num_elements], (first, count))

    def take_back(self, loan: Loan, *, is_called_in: bool) -> None:
        self._pool.take_back(*loan.owner_key)
        if is_called_in:
            self._paused_until = self._clock() + _PAUSE_SECONDS
