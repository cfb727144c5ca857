"""Blocks of KV cache: allocation, sharing and prefix reuse. Pure Python, no tensors.

A block is in exactly one of four states:

    used       referenced by one or more requests
    empty      referenced by none and found by no key
    cached     referenced by none, but its key still finds it; reused last-recently-used first
    lent       out of the pool: its memory is used for something else

Block 0 is the null block: never handed out, always zero, it pads block tables.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

from .request import AdapterShare

NULL_BLOCK = 0
_USED, _EMPTY, _CACHED, _LENT = range(4)
_IDLE_AS_EMPTY = bytes.maketrans(bytes([_CACHED]), bytes([_EMPTY]))


def root_key(adapters: Sequence[AdapterShare], salt: str, tenant: str = "") -> bytes:
    """The start of a request's key chain: what it computes with, and for whom. Never a name.

    A tenant cannot tell by the time of its first token what others asked before.
    """
    state = hashlib.blake2b(digest_size=32)
    for share in adapters:
        state.update(f"{share.digest}\0{share.weight!r}\0".encode())
    state.update(b"\2" + tenant.encode() + b"\0" if tenant else b"\1")
    state.update(salt.encode())
    return state.digest()


def block_key(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The key of a full block: its parent's key and its own tokens."""
    return hashlib.blake2b(parent + array("q", tokens).tobytes(), digest_size=32).digest()


class BlockPool:
    """``num_blocks`` blocks of ``block_size`` tokens each, the null block included."""

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool = True) -> None:
        assert num_blocks >= 2
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._prefix_caching = prefix_caching
        self._references = [0] * num_blocks
        self._keys: list[bytes | None] = [None] * num_blocks
        self._block_of_key: dict[bytes, int] = {}
        # Empty blocks come first; cached ones follow in the order in which they became idle.
        self._idle: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks))
        # The state of every block; the null block never leaves.
        self._states = bytearray([_USED]) + bytearray([_EMPTY]) * (num_blocks - 1)
        self.num_lent = 0

    @property
    def num_free(self) -> int:
        """Blocks that ``allocate`` can hand out: empty and cached ones."""
        return len(self._idle)

    @property
    def num_used(self) -> int:
        return self.num_blocks - 1 - len(self._idle) - self.num_lent

    @property
    def num_cached(self) -> int:
        return self._states.count(_CACHED)

    def allocate(self, count: int) -> list[int] | None:
        """Hand out ``count`` blocks with one reference each, or None and change nothing."""
        if count > len(self._idle):
            return None
        blocks = []
        for _ in range(count):
            block, _ = self._idle.popitem(last=False)
            self._forget(block)
            self._references[block] = 1
            self._states[block] = _USED
            blocks.append(block)
        return blocks

    def match(self, keys: Sequence[bytes]) -> list[int]:
        """The blocks of the longest cached prefix of ``keys``; takes no reference."""
        blocks = []
        for key in keys:
            block = self._block_of_key.get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def share(self, blocks: Sequence[int]) -> None:
        """Take one more reference on each of ``blocks``."""
        for block in blocks:
            if not self._references[block]:
                del self._idle[block]
                self._states[block] = _USED
            self._references[block] += 1

    def register(self, block: int, key: bytes) -> None:
        """Make a full, computed block findable; the first block with a key keeps it."""
        assert self._references[block] > 0
        if self._prefix_caching and self._keys[block] is None and key not in self._block_of_key:
            self._keys[block] = key
            self._block_of_key[key] = block

    def release(self, blocks: Sequence[int]) -> None:
        """Give back one reference on each; the tail of a prefix is the first to be reused."""
        for block in reversed(blocks):
            assert self._references[block] > 0
            self._references[block] -= 1
            if not self._references[block]:
                self._set_idle(block)

    def lend(self, count: int, *, keep: int, only_empty: bool) -> int | None:
        """Take ``count`` blocks in a row out of the pool; returns the first, or None.

        ``keep`` idle blocks stay in the pool. Cached blocks are forgotten unless ``only_empty``.
        """
        assert count > 0
        if len(self._idle) - count < keep:
            return None
        states = self._states if only_empty else self._states.translate(_IDLE_AS_EMPTY)
        # From the end: requests are given blocks from the start.
        first = states.rfind(bytes([_EMPTY]) * count)
        if first < 0:
            return None
        for block in range(first, first + count):
            del self._idle[block]
            self._forget(block)
            self._states[block] = _LENT
        self.num_lent += count
        return first

    def take_back(self, first: int, count: int) -> None:
        """Have lent blocks in the pool again, empty."""
        for block in range(first, first + count):
            assert self._states[block] == _LENT
            self._set_idle(block)
        self.num_lent -= count

    def _set_idle(self, block: int) -> None:
        is_cached = self._keys[block] is not None
        self._states[block] = _CACHED if is_cached else _EMPTY
        self._idle[block] = None
        self._idle.move_to_end(block, last=is_cached)

    def _forget(self, block: int) -> None:
        key, self._keys[block] = self._keys[block], None
        if key is not None:
            del self._block_of_key[key]
