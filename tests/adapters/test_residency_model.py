"""Interleavings of everything that can happen to versions, against the promises of residency.

Reads and copies end when the test says so, in any order; memory behaves as on CUDA and as on a CPU.
"""

import math
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from multiflora.adapters.residency import LoadResult
from multiflora.adapters.tier import Tier
from tests.adapters.residency_world import BROKEN, DEVICE_BYTES, HOST_BYTES, SIZES, World

groups = st.lists(st.sampled_from([*SIZES, BROKEN]), min_size=1, max_size=2, unique=True)


class ResidencyMachine(RuleBasedStateMachine):
    @initialize(
        shares_memory=st.booleans(), lends=st.sampled_from([(0, 0), (24, 0), (0, 40), (40, 60)])
    )
    def begin(self, shares_memory: bool, lends: tuple[int, int]) -> None:
        self.world = World(shares_memory=shares_memory, lends=lends)

    @rule(group=groups)
    def arrive(self, group: list[str]) -> None:
        if len(self.world.waiting) < 6:
            self.world.waiting.append(tuple(group))

    @rule(budget_seconds=st.sampled_from([0.0, math.inf]))
    def step(self, budget_seconds: float) -> None:
        self.world.budget_seconds = budget_seconds
        self.world.step()

    @precondition(lambda self: self.world.lane.work)
    @rule(index=st.integers(0, 20))
    def finish_work(self, index: int) -> None:
        self.world.lane.finish(index)

    @precondition(lambda self: self.world.transfer.under_way)
    @rule(index=st.integers(0, 20))
    def finish_copy(self, index: int) -> None:
        under_way = self.world.transfer.under_way
        under_way.pop(index % len(under_way)).is_done = True

    @precondition(lambda self: self.world.running)
    @rule(index=st.integers(0, 20))
    def end(self, index: int) -> None:
        self.world.end(index)

    @precondition(lambda self: self.world.waiting)
    @rule(index=st.integers(0, 20))
    def abort(self, index: int) -> None:
        self.world.waiting.pop(index % len(self.world.waiting))

    @rule(digest=st.sampled_from([*SIZES, BROKEN]))
    def ask_for_a_load(self, digest: str) -> None:
        self.world.residency.start_load(digest)

    @rule(digest=st.sampled_from([*SIZES, BROKEN]))
    def pin(self, digest: str) -> None:
        if digest not in self.world.pinned:
            self.world.asked_pins.add(digest)
            self.world.residency.pin(digest)

    @rule(digest=st.sampled_from([*SIZES]))
    def unpin(self, digest: str) -> None:
        self.world.residency.unpin(digest)
        self.world.pinned.discard(digest)
        self.world.asked_pins.discard(digest)

    @rule(digest=st.sampled_from([*SIZES]))
    def unload(self, digest: str) -> None:
        if self.world.residency.unload(digest):
            assert self.world.residency.tier_of(digest) is Tier.DISK

    @rule(keep=groups)
    def call_in(self, keep: list[str]) -> None:
        """The lender needs its memory."""
        before = dict(self.world.lender.lent)
        slots = self.world.residency.slots
        expected = bool(slots.idle_borrowed(keep=keep))
        assert self.world.residency.call_in(keep=keep) == expected
        assert len(before) - len(self.world.lender.lent) == expected

    @invariant()
    def bytes_are_within_budgets_and_add_up(self) -> None:
        if not hasattr(self, "world"):
            return
        slots, host = self.world.residency.slots, self.world.residency.host
        sizes = {d: SIZES.get(d, 8) for d in slots.digests()}
        borrowed = {d for d in sizes if slots.is_borrowed(d)}
        lent = sum(self.world.lender.lent.values())
        assert slots.borrowed_bytes == sum(sizes[d] for d in borrowed) == lent
        assert slots.used_bytes + lent == sum(sizes.values())
        assert slots.used_bytes <= DEVICE_BYTES
        assert not borrowed & self.world.pinned, "a pin has memory of its own"
        assert sum(SIZES.get(d, 8) for d in host.digests()) <= host.used_bytes <= HOST_BYTES
        assert slots.pinned_bytes <= DEVICE_BYTES
        if self.world.transfer.shares_memory:
            shared = set(sizes) - borrowed
            assert not shared & set(host.digests()), "one memory was counted twice"

    @invariant()
    def leased_and_pinned_versions_stay(self) -> None:
        if not hasattr(self, "world"):
            return
        leased = {digest for group in self.world.running for digest in group}
        for digest in leased | self.world.pinned:
            assert self.world.residency.tier_of(digest) is Tier.DEVICE
        leases = Counter(digest for group in self.world.running for digest in group)
        assert self.world.residency.slots.num_leases == leases.total()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self._everybody_is_served()
            self._nothing_is_left()

    def _everybody_is_served(self) -> None:
        for _ in range(60):
            self.world.advance()
            if not self.world.waiting and not self.world.asked_pins:
                return
        raise AssertionError(f"still waiting: {self.world.waiting} {self.world.asked_pins}")

    def _nothing_is_left(self) -> None:
        residency = self.world.residency
        for digest in (*SIZES, BROKEN):
            residency.unpin(digest)
        for _ in range(20):
            self.world.advance()
        residency.prefetch(())
        assert not residency.is_loading
        for digest in (*SIZES, BROKEN):
            assert residency.unload(digest)
        assert residency.slots.used_bytes == residency.host.used_bytes == 0
        assert self.world.lender.lent == {}
        assert residency.slots.num_leases == residency.slots.pinned_bytes == 0
        assert residency.tiers() == {}


TestResidencyMachine = ResidencyMachine.TestCase
TestResidencyMachine.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("shares_memory", [True, False], ids=["cpu", "cuda"])
def test_a_copy_under_way_is_not_usable_and_not_evictable(shares_memory: bool) -> None:
    world = World(shares_memory=shares_memory)
    world.waiting = [("d",)]
    for _ in range(4):
        world.step()
        while world.lane.work:
            world.lane.finish(0)
    assert world.running == ([("d",)] if shares_memory else [])
    assert world.residency.tier_of("d") is (Tier.DEVICE if shares_memory else Tier.HOST)
    assert not world.residency.unload("d")
    for copy in world.transfer.under_way:
        copy.is_done = True
    world.step()
    assert world.running == [("d",)]


def test_an_aborted_request_s_version_is_not_read_any_more() -> None:
    world = World(shares_memory=True)
    world.waiting = [("a",), ("b",)]
    world.step()
    while world.lane.work:
        world.lane.finish(0)
    world.waiting = [("b",)]
    world.residency.prefetch(world.waiting)
    world.step()
    assert [read.digest for _, _, (_, read) in world.lane.work] == ["b"]


def test_queued_large_versions_occupy_no_memory_before_their_turn() -> None:
    world = World(shares_memory=True, large_bytes=10)
    world.waiting = [("b",), ("c",), ("a",)]
    world.step()
    while world.lane.work:
        world.lane.finish(0)
    world.step()
    assert {read.digest for _, _, (_, read) in world.lane.work} == {"b", "a"}
    assert world.residency.host.used_bytes == SIZES["b"] + SIZES["a"]


def test_a_failure_is_told_to_all_who_wait_and_tried_again_later() -> None:
    world = World(shares_memory=True)
    world.waiting = [(BROKEN,), ("a",), ("a", BROKEN)]
    for _ in range(3):
        world.step()
        while world.lane.work:
            world.lane.finish(0)
    world.step()
    assert set(world.rejected) == {(BROKEN,), ("a", BROKEN)}
    assert world.running == [("a",)]
    world.waiting = [(BROKEN,)]
    world.step()
    assert len(world.rejected) == 3, "a flood does not read it again at once"
    world.seconds += 5
    world.waiting = [(BROKEN,)]
    world.step()
    assert world.lane.work, "later it is read again"


def test_a_failure_names_no_path() -> None:
    world = World(shares_memory=True)
    world.residency.start_load(BROKEN)
    results: list[LoadResult] = []
    for _ in range(3):
        results += world.residency.poll()
        while world.lane.work:
            world.lane.finish(0)
    (result,) = results
    assert result.error
    assert result.error.code == "load_failed"
    assert "fire" in str(result.error)
    assert "secret" not in str(result.error)


def test_a_pin_that_cannot_fit_beside_others_is_refused_with_numbers() -> None:
    world = World(shares_memory=True)
    found: dict[str, LoadResult] = {}
    for digest in ("f", "d"):
        world.residency.pin(digest)
        for _ in range(4):
            found |= {result.digest: result for result in world.residency.poll()}
            while world.lane.work:
                world.lane.finish(0)
    assert found["f"].error is None
    refusal = found["d"].error
    assert refusal
    assert refusal.code == "pin_too_large"
    assert "40 bytes, 56 of 80 are pinned" in str(refusal)
    world.waiting = [("d",)]
    for _ in range(4):
        world.advance()
    assert world.rejected == [("d",)], "who can never run must not wait"


def test_a_pair_that_cannot_fit_beside_pins_does_not_keep_the_last_pin_out() -> None:
    """``d`` waits for the room of ``b``, and ``f`` for the host memory that ``d`` waits in."""
    machine = ResidencyMachine()
    machine.begin(shares_memory=False, lends=(0, 0))
    machine.arrive(group=["b", "f"])
    for digest in ("a", "c", "d"):
        machine.pin(digest=digest)
    machine._everybody_is_served()
    assert machine.world.rejected == [("b", "f")]
    assert machine.world.pinned == {"a", "c", "d"}
