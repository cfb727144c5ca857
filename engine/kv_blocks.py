"""Blocks of KV cache: allocation, sharing and prefix reuse. Pure Python, no tensors.

A block is in exactly one of three states:

    used       referenced by one or more requests
    cached     referenced by none, but its key still finds it; reused last-recently-used first
    empty      referenced by none and found by no key

Block 0 is the null block: never handed out, always zero, it pads block tables.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

from .request import AdapterShare

NULL_BLOCK = 0


def root_key(adapters: Sequence[AdapterShare], salt: str) -> bytes:
    """The start of a request's key chain: what it computes with, and for whom. Never a name."""
    state = hashlib.blake2b(digest_size=32)
    for share in adapters:
        state.update(f"{share.digest}\0{share.weight!r}\0".encode())
    state.update(b"\1" + salt.encode())
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

    @property
    def num_free(self) -> int:
        """Blocks that ``allocate`` can hand out: empty and cached ones."""
        return len(self._idle)

    @property
    def num_used(self) -> int:
        return self.num_blocks - 1 - len(self._idle)

    @property
    def num_cached(self) -> int:
        return sum(1 for block in self._idle if self._keys[block] is not None)

    def allocate(self, count: int) -> list[int] | None:
        """Hand out ``count`` blocks with one reference each, or None and change nothing."""
        if count > len(self._idle):
            return None
        blocks = []
        for _ in range(count):
            block, _ = self._idle.popitem(last=False)
            self._forget(block)
            self._references[block] = 1
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
                self._idle[block] = None
                if self._keys[block] is None:
                    self._idle.move_to_end(block, last=False)

    def _forget(self, block: int) -> None:
        key, self._keys[block] = self._keys[block], None
        if key is not None:
            del self._block_of_key[key]
