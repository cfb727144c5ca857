"""Slots never exceed their memory, and a leased version never leaves."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from multiflora.adapters.slots import Cause, SlotTable

DIGESTS = [f"version-{index}" for index in range(6)]
SIZES = dict(zip(DIGESTS, (10, 25, 40, 5, 60, 30), strict=True))


class SlotMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table = SlotTable(100)
        self.leases: dict[str, int] = {}

    @rule(digest=st.sampled_from(DIGESTS))
    def place(self, digest: str) -> None:
        if digest in self.table:
            return
        leased = sum(SIZES[name] for name in self.leases)
        before = set(self.table.digests())
        placement = self.table.place(digest, SIZES[digest])
        if placement is None:
            assert leased + SIZES[digest] > 100, "refused although idle versions could leave"
            assert set(self.table.digests()) == before, "a refusal changes nothing"
        else:
            assert not set(placement.evicted) & set(self.leases), "a leased version was evicted"
            assert set(self.table.digests()) == before - set(placement.evicted) | {digest}

    @rule(digest=st.sampled_from(DIGESTS))
    def lease(self, digest: str) -> None:
        if digest in self.table:
            self.table.lease(digest)
            self.leases[digest] = self.leases.get(digest, 0) + 1

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        digest = data.draw(st.sampled_from(sorted(self.leases)))
        self.table.release(digest)
        self.leases[digest] -= 1
        if not self.leases[digest]:
            del self.leases[digest]

    @invariant()
    def memory_and_slots_are_consistent(self) -> None:
        digests = self.table.digests()
        assert self.table.used_bytes == sum(SIZES[digest] for digest in digests) <= 100
        slots = [self.table.slot_of(digest) for digest in digests]
        assert len(set(slots)) == len(slots), "two versions share a slot"
        assert self.table.num_leases == sum(self.leases.values())


TestSlotMachine = SlotMachine.TestCase
TestSlotMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_the_least_recently_used_idle_version_leaves_first() -> None:
    table = SlotTable(30)
    for digest in ("a", "b", "c"):
        table.place(digest, 10)
        table.lease(digest)
        table.release(digest)
    table.lease("a")
    table.release("a")
    placement = table.place("d", 10)
    assert placement is not None
    assert placement.evicted == ("b",)
    assert table.evictions == {Cause.ROOM: 1}
    assert table.sizes() == {"a": 10, "c": 10, "d": 10}


def test_a_freed_slot_is_used_again() -> None:
    table = SlotTable(20)
    first = table.place("a", 10)
    table.remove("a")
    second = table.place("b", 10)
    assert first is not None
    assert second is not None
    assert first.slot == second.slot


def test_removing_a_leased_version_is_a_bug() -> None:
    table = SlotTable(20)
    table.place("a", 10)
    table.lease("a")
    with pytest.raises(AssertionError):
        table.remove("a")
