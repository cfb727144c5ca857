"""Blocks are counted exactly, shared safely and found by what they hold."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from multiflora.engine.kv_blocks import NULL_BLOCK, BlockPool, block_key, root_key
from multiflora.engine.request import AdapterShare

NUM_BLOCKS = 9


class PoolMachine(RuleBasedStateMachine):
    """Holders take, share and return blocks; keys are registered along the way."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS, 4)
        self.holders: list[list[int]] = []
        self.keys: dict[bytes, int] = {}
        self.loans: list[tuple[int, int]] = []

    @rule(count=st.integers(0, 5))
    def allocate(self, count: int) -> None:
        free = self.pool.num_free
        blocks = self.pool.allocate(count)
        if blocks is None:
            assert count > free
            assert self.pool.num_free == free
        else:
            self.holders.append(blocks)
            # An allocated block forgets what it held.
            self.keys = {key: block for key, block in self.keys.items() if block not in blocks}

    @precondition(lambda self: any(self.holders))
    @rule(data=st.data(), number=st.integers(0, 6))
    def register(self, data: st.DataObject, number: int) -> None:
        block = data.draw(st.sampled_from([b for holder in self.holders for b in holder]))
        key = bytes([number]) * 32
        self.pool.register(block, key)
        if key not in self.keys and block not in self.keys.values():
            self.keys[key] = block

    @rule(number=st.integers(0, 6))
    def share(self, number: int) -> None:
        found = self.pool.match([bytes([number]) * 32])
        if found:
            self.pool.share(found)
            self.holders.append(found)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.pool.release(self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1))))

    @rule(count=st.integers(1, 5), keep=st.integers(0, 3), only_empty=st.booleans())
    def lend(self, count: int, keep: int, only_empty: bool) -> None:
        free, cached = self.pool.num_free, self.pool.num_cached
        first = self.pool.lend(count, keep=keep, only_empty=only_empty)
        if first is None:
            assert self.pool.num_free == free
            return
        assert free - count >= keep
        run = range(first, first + count)
        self.loans.append((first, count))
        if only_empty:
            assert self.pool.num_cached == cached
        self.keys = {key: block for key, block in self.keys.items() if block not in run}

    @precondition(lambda self: self.loans)
    @rule(data=st.data())
    def take_back(self, data: st.DataObject) -> None:
        self.pool.take_back(*self.loans.pop(data.draw(st.integers(0, len(self.loans) - 1))))

    @invariant()
    def every_block_is_in_exactly_one_state(self) -> None:
        held = Counter(block for holder in self.holders for block in holder)
        assert NULL_BLOCK not in held
        lent = [b for first, count in self.loans for b in range(first, first + count)]
        assert len(set(lent)) == len(lent) == self.pool.num_lent
        assert not held.keys() & set(lent)
        assert NULL_BLOCK not in lent
        assert self.pool.num_used == len(held)
        assert self.pool.num_free == NUM_BLOCKS - 1 - len(held) - len(lent)
        assert self.pool.num_cached <= self.pool.num_free

    @invariant()
    def keys_find_the_block_that_registered_them(self) -> None:
        for number in range(7):
            key = bytes([number]) * 32
            assert self.pool.match([key]) == ([self.keys[key]] if key in self.keys else [])


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_empty_blocks_are_used_before_cached_ones() -> None:
    pool = BlockPool(5, 4)
    first = pool.allocate(2)
    assert first
    pool.register(first[0], b"a" * 32)
    pool.release(first)
    taken = pool.allocate(3)
    assert taken
    assert first[0] not in taken
    assert pool.match([b"a" * 32]) == [first[0]]


def test_the_tail_of_a_prefix_is_reused_before_its_head() -> None:
    pool = BlockPool(4, 4)
    blocks = pool.allocate(3)
    assert blocks
    keys = [bytes([n]) * 32 for n in range(3)]
    for block, key in zip(blocks, keys, strict=True):
        pool.register(block, key)
    pool.release(blocks)
    pool.allocate(1)
    assert pool.match(keys) == blocks[:2]


def test_a_match_stops_at_the_first_gap() -> None:
    pool = BlockPool(5, 4)
    blocks = pool.allocate(3)
    assert blocks
    for index in (0, 2):
        pool.register(blocks[index], bytes([index]) * 32)
    assert pool.match([bytes([n]) * 32 for n in range(3)]) == blocks[:1]


def test_nothing_is_found_when_prefix_caching_is_off() -> None:
    pool = BlockPool(5, 4, prefix_caching=False)
    blocks = pool.allocate(1)
    assert blocks
    pool.register(blocks[0], b"a" * 32)
    assert pool.match([b"a" * 32]) == []


def test_keys_depend_on_version_weight_order_and_salt() -> None:
    a, b = AdapterShare("a" * 64), AdapterShare("b" * 64)
    roots = [
        root_key((), ""),
        root_key((), "tenant"),
        root_key((a,), ""),
        root_key((b,), ""),
        root_key((AdapterShare("a" * 64, 0.5),), ""),
        root_key((a, b), ""),
        root_key((b, a), ""),
    ]
    assert len(set(roots)) == len(roots)


@given(st.lists(st.integers(0, 2**31), min_size=4, max_size=4), st.integers(0, 3))
def test_a_changed_token_changes_every_later_key(tokens: list[int], position: int) -> None:
    changed = list(tokens)
    changed[position] += 1
    root = root_key((), "")
    assert block_key(root, tokens) != block_key(root, changed)
    same_tail = [1, 2, 3, 4]
    first, second = block_key(root, tokens), block_key(root, changed)
    assert block_key(first, same_tail) != block_key(second, same_tail)


def test_a_loan_is_a_run_of_blocks_from_the_far_end() -> None:
    pool = BlockPool(9, 4)
    used = pool.allocate(2)
    assert pool.lend(3, keep=0, only_empty=True) == 6
    assert pool.lend(4, keep=0, only_empty=True) is None, "only three are left"
    assert pool.lend(3, keep=1, only_empty=True) is None, "one was to be kept"
    assert pool.lend(2, keep=1, only_empty=True) == 4
    assert used == [1, 2]
    pool.take_back(6, 3)
    assert (pool.num_free, pool.num_lent) == (4, 2)


def test_a_cached_block_is_lent_only_in_need_and_is_not_found_any_more() -> None:
    pool = BlockPool(4, 4)
    blocks = pool.allocate(3)
    assert blocks
    key = b"k" * 32
    pool.register(blocks[1], key)
    pool.release(blocks)
    assert pool.lend(3, keep=0, only_empty=True) is None
    assert pool.match([key]) == [blocks[1]]
    assert pool.lend(3, keep=0, only_empty=False) == 1
    assert pool.match([key]) == []
    pool.take_back(1, 3)
    assert pool.num_cached == 0
