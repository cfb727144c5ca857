"""Nobody starves, nothing leaks, limits hold: the scheduler under random lives."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.slots import Readiness, SlotTable
from multiflora.engine.config import SchedulerConfig
from multiflora.engine.kv_blocks import BlockPool
from multiflora.engine.request import (
    AdapterShare,
    FinishReason,
    GenerationRequest,
    SamplingParams,
)
from multiflora.engine.scheduler import Scheduler, StepPlan

BLOCK = 4


class FakeMemory:
    """Adapter memory with ``capacity`` equal slots; a load takes ``delay`` calls of ``prepare``."""

    def __init__(self, capacity: int = 100, delay: int = 0) -> None:
        self.slots = SlotTable(capacity)
        self.delay = delay
        self.waits: dict[str, int] = {}
        self.broken: set[str] = set()
        self.groups: list[Sequence[str]] = []
        self.loans: list[tuple[BlockPool, int]] = []

    def prefetch(self, groups: Iterable[Sequence[str]]) -> None:
        self.groups = list(groups)

    def prepare(self, digests: Iterable[str], *, is_blend: bool = False) -> Readiness:
        digests = tuple(digests)
        for digest in digests:
            if digest in self.broken:
                raise AdapterRejected("load_failed", f"{digest} is broken")
            if digest in self.slots:
                continue
            self.waits[digest] = self.waits.get(digest, 0) + 1
            if self.waits[digest] <= self.delay:
                return Readiness.LOADING
            if self.slots.place(digest, 1, keep=digests) is None:
                return Readiness.NO_ROOM
        return Readiness.READY

    def lease(self, digests: Iterable[str]) -> None:
        for digest in digests:
            self.slots.lease(digest)

    def release(self, digests: Iterable[str]) -> None:
        for digest in digests:
            self.slots.release(digest)

    def call_in(self, *, keep: Sequence[str] = ()) -> bool:
        if not self.loans:
            return False
        pool, block = self.loans.pop()
        pool.take_back(block, 1)
        return True


def request(
    id: str, length: int = 5, count: int = 3, *names: str, priority: int = 0, **sampling: Any
) -> GenerationRequest:
    return GenerationRequest(
        id=id,
        prompt=tuple(hash((id, k)) % 1000 for k in range(length)),
        sampling=SamplingParams(max_tokens=count, **sampling),
        adapters=tuple(AdapterShare(name) for name in names),
        priority=priority,
    )


class Harness:
    """A scheduler whose model always answers 7; checks every plan it makes."""

    def __init__(
        self, num_blocks: int = 50, memory: FakeMemory | None = None, **limits: int
    ) -> None:
        self.config = SchedulerConfig(**{"max_num_requests": 4, "max_batched_tokens": 16, **limits})
        self.pool = BlockPool(num_blocks, BLOCK)
        self.memory = memory or FakeMemory()
        self.scheduler = Scheduler(self.config, self.pool, self.memory)
        self.order: list[str] = []
        self.rejected: list[str] = []

    def lend(self, count: int) -> None:
        for _ in range(count):
            block = self.pool.lend(1, keep=0, only_empty=False)
            assert block is not None
            self.memory.loans.append((self.pool, block))

    def submit(self, *requests: GenerationRequest) -> None:
        for item in requests:
            self.scheduler.submit(item)

    def step(self, *, is_late: bool = False) -> StepPlan:
        plan = self.scheduler.schedule(is_late=is_late)
        self.rejected += [r.request.id for r in self.scheduler.take_rejections()]
        self.check(plan)
        for item in plan.items:
            reason = self.scheduler.commit(item, 7 if item.samples else None)
            if reason:
                assert reason is FinishReason.LENGTH
                self.order.append(item.request.id)
                self.scheduler.finish(item.request)
        return plan

    def check(self, plan: StepPlan) -> None:
        assert plan.num_tokens <= self.config.max_batched_tokens
        assert len(plan.items) <= self.config.max_num_requests
        ids = [item.request.id for item in plan.items]
        assert len(set(ids)) == len(ids)
        owned = {block for item in plan.items for block in item.request.blocks}
        assert set(plan.fresh_blocks) <= owned
        for item in plan.items:
            assert item.start == item.request.num_computed
            assert len(item.request.blocks) * BLOCK >= item.start + item.count
            for digest in item.request.digests:
                assert digest in self.memory.slots
        keys = [item.request.digests for item in plan.items]
        runs = [key for index, key in enumerate(keys) if index == 0 or keys[index - 1] != key]
        assert len(set(runs)) == len(runs), "rows of one version must be contiguous"

    def run(self, max_steps: int = 2000) -> list[str]:
        for _ in range(max_steps):
            if not self.scheduler.has_requests:
                return self.order
            self.step()
        raise AssertionError("requests starve")

    def assert_empty(self) -> None:
        assert self.pool.num_used == 0
        assert self.memory.slots.num_leases == 0
        assert (self.scheduler.num_running, self.scheduler.num_waiting) == (0, 0)


_LIVES = st.lists(
    st.tuples(
        st.integers(1, 30),
        st.integers(1, 12),
        st.lists(st.sampled_from("abc"), max_size=2, unique=True),
        st.integers(0, 20),
        st.one_of(st.none(), st.integers(0, 25)),
    ),
    min_size=1,
    max_size=14,
)


@settings(max_examples=150, deadline=None)
@given(
    lives=_LIVES,
    num_blocks=st.integers(12, 30),
    slots=st.integers(2, 4),
    delay=st.integers(0, 5),
    starvation=st.integers(1, 10),
    num_lent=st.integers(0, 11),
)
def test_every_request_ends_and_everything_is_returned(
    lives: list[tuple[int, int, list[str], int, int | None]],
    num_blocks: int,
    slots: int,
    delay: int,
    starvation: int,
    num_lent: int,
) -> None:
    harness = Harness(num_blocks, FakeMemory(slots, delay), starvation_steps=starvation)
    harness.lend(num_lent)
    aborted = set()
    for step in range(30):
        for index, (length, count, names, arrival, abort) in enumerate(lives):
            if arrival == step:
                harness.submit(request(f"r{index}", length, count, *names))
            active = harness.scheduler.get(f"r{index}")
            if abort == step and active:
                harness.scheduler.finish(active)
                aborted.add(f"r{index}")
        harness.step()
    finished = harness.run()
    assert set(finished) | aborted == {f"r{index}" for index in range(len(lives))}
    harness.assert_empty()


def test_decoding_requests_are_served_before_prefill_chunks() -> None:
    harness = Harness(max_batched_tokens=8)
    harness.submit(request("short", 3, 10))
    harness.step()
    harness.submit(request("long", 40, 1))
    for _ in range(4):
        plan = harness.step()
        counts = {item.request.id: item.count for item in plan.items}
        assert counts == {"short": 1, "long": 7}


def test_a_prompt_longer_than_the_budget_is_prefilled_in_chunks() -> None:
    harness = Harness(max_batched_tokens=8)
    harness.submit(request("long", 20, 1))
    plans = [harness.step() for _ in range(3)]
    assert [plan.num_tokens for plan in plans] == [8, 8, 4]
    assert [plan.items[0].samples for plan in plans] == [False, False, True]


def test_a_shared_prefix_is_computed_once_per_version() -> None:
    harness = Harness()
    prompt = tuple(range(14))

    def same_prompt(id: str, *names: str) -> GenerationRequest:
        shares = tuple(AdapterShare(name) for name in names)
        sampling = SamplingParams(max_tokens=1)
        return GenerationRequest(id=id, prompt=prompt, sampling=sampling, adapters=shares)

    counts = {}
    for id, names in (("base", ()), ("again", ()), ("a", ("a",)), ("a again", ("a",))):
        harness.submit(same_prompt(id, *names))
        counts[id] = harness.step().num_tokens
    assert counts == {"base": 14, "again": 2, "a": 14, "a again": 2}


def test_a_prompt_of_whole_blocks_still_computes_its_last_token() -> None:
    harness = Harness()
    for id in ("first", "second"):
        harness.submit(
            GenerationRequest(id=id, prompt=tuple(range(8)), sampling=SamplingParams(max_tokens=1))
        )
        plan = harness.step()
    assert plan.num_tokens == BLOCK


def test_the_request_admitted_last_is_preempted_first() -> None:
    harness = Harness(num_blocks=9)
    harness.submit(request("first", 12, 18), request("second", 8, 18))
    assert harness.run() == ["first", "second"]
    assert harness.scheduler.num_preemptions > 0
    harness.assert_empty()


def test_what_was_lent_comes_back_before_anybody_is_preempted() -> None:
    harness = Harness(num_blocks=17)
    harness.lend(12)
    harness.submit(request("first", 12, 18), request("second", 8, 18))
    assert harness.run() == ["first", "second"]
    assert harness.scheduler.num_preemptions == 0
    assert 0 < len(harness.memory.loans) < 12, "no more than was needed"
    harness.assert_empty()


def test_a_loading_version_stalls_nobody() -> None:
    harness = Harness(memory=FakeMemory(delay=40), starvation_steps=3)
    harness.submit(request("slow", 5, 2, "a"), *(request(f"base{i}", 5, 4) for i in range(6)))
    finished = harness.run()
    assert finished[-1] == "slow"
    assert len(finished) == 7


def test_a_version_waiting_for_room_gets_it_within_the_bound() -> None:
    harness = Harness(memory=FakeMemory(capacity=1), starvation_steps=5)
    harness.submit(request("b", 4, 2, "b"))
    for index in range(40):
        harness.submit(request(f"a{index}", 4, 3, "a"))
    steps = 0
    harness.submit(request("late b", 4, 2, "b"))
    while "late b" not in harness.order:
        harness.step()
        steps += 1
        assert steps < 40
    assert steps <= 5 + 3 + 3 + 2


def test_a_busy_adapter_does_not_crowd_out_a_quiet_one() -> None:
    harness = Harness(max_num_requests=2)
    harness.submit(*(request(f"hot{i}", 6, 6, "hot") for i in range(30)))
    for _ in range(10):
        harness.step()
    harness.submit(request("cold", 6, 6, "cold"))
    finished_before = len(harness.order)
    harness.run()
    assert harness.order.index("cold") - finished_before <= 4


def test_a_flood_gives_up_room_for_a_client_that_starves() -> None:
    harness = Harness(num_blocks=200, max_num_requests=4, starvation_steps=6)
    harness.submit(*(request(f"flood{i}", 4, 300, "flood") for i in range(12)))
    harness.step()
    harness.submit(request("quiet", 4, 2, "quiet"))
    for _ in range(6 + 4):
        harness.step()
    assert "quiet" in harness.order
    assert harness.scheduler.num_preemptions == 1, "no more is set back than is needed"


def test_clients_with_equal_shares_do_not_take_room_from_each_other() -> None:
    harness = Harness(num_blocks=200, max_num_requests=2, starvation_steps=3)
    names = ("a", "b", "c")
    harness.submit(*(request(f"{n}{i}", 4, 40, n) for n in names for i in range(3)))
    for _ in range(60):
        harness.step()
    # Two of one client may be admitted together; then one is set back, once.
    assert harness.scheduler.num_preemptions <= 1


def test_a_backlog_does_not_fill_a_step_before_others_get_a_turn() -> None:
    harness = Harness(num_blocks=200, max_num_requests=4, max_batched_tokens=64)
    harness.submit(*(request(f"flood{i}", 8, 9, "flood") for i in range(20)))
    harness.submit(request("a", 8, 9, "a"), request("b", 8, 9, "b"))
    plan = harness.step()
    assert {item.request.id for item in plan.items} == {"flood0", "flood1", "a", "b"}


def test_memory_hears_whose_turn_is_next_even_while_there_is_no_room() -> None:
    harness = Harness(max_num_requests=1)
    harness.submit(request("running", 4, 50))
    harness.step()
    harness.submit(request("x", 4, 2, "x"), request("yz", 4, 2, "y", "z"))
    harness.step()
    assert harness.memory.groups == [("x",), ("y", "z")]


def test_a_broken_version_rejects_its_requests_only() -> None:
    harness = Harness()
    harness.memory.broken.add("bad")
    harness.submit(request("bad", 5, 2, "bad"), request("good", 5, 2, "good"))
    assert harness.run() == ["good"]
    assert harness.rejected == ["bad"]
    harness.assert_empty()


def test_stop_tokens_end_a_request() -> None:
    harness = Harness()
    sampling = SamplingParams(max_tokens=9, stop_token_ids=(7,))
    harness.submit(GenerationRequest(id="r", prompt=(1, 2), sampling=sampling))
    plan = harness.scheduler.schedule()
    assert harness.scheduler.commit(plan.items[0], 7) is FinishReason.STOP


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_tokens", -1), ("temperature", 2.5), ("top_p", 0.0), ("min_p", 1.5), ("top_k", -2)],
)
def test_sampling_limits_name_the_value_and_the_rule(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        SamplingParams(**{"max_tokens": 1, field: value})


def test_a_less_important_request_runs_when_nobody_else_waits() -> None:
    harness = Harness(max_num_requests=1)
    harness.submit(request("idle", priority=9), request("a"), request("b"))
    assert harness.run() == ["a", "b", "idle"]


def test_a_less_important_request_gives_up_its_place() -> None:
    harness = Harness(max_num_requests=1)
    harness.submit(request("idle", 5, 50, priority=9))
    harness.step()
    harness.submit(request("urgent"))
    assert harness.run() == ["urgent", "idle"]
    assert harness.scheduler.num_preemptions == 1


def test_a_less_important_request_never_starves_others_out() -> None:
    harness = Harness(max_num_requests=1, starvation_steps=2)
    harness.submit(*(request(f"a{k}", 5, 9) for k in range(3)), request("idle", priority=9))
    assert harness.run()[-1] == "idle"


def test_scored_tokens_have_a_budget_of_their_own() -> None:
    harness = Harness(max_num_requests=4, max_batched_tokens=16)
    harness.submit(request("scored", 12, 1, prompt_logprobs=0), request("other", 8, 1))
    plan = harness.step()
    assert {item.request.id: item.count for item in plan.items} == {"scored": 4, "other": 8}
    assert sorted(harness.run()) == ["other", "scored"]


def test_a_prompt_can_be_read_without_an_answer() -> None:
    harness = Harness()
    harness.submit(request("read", 9, 0))
    assert harness.run() == ["read"]


def test_in_a_late_step_prompts_wait_for_those_who_decode_but_once() -> None:
    harness = Harness()
    harness.submit(request("a", 5, 4))
    harness.step(is_late=True)
    harness.submit(request("b", 20, 1))
    plans = [harness.step(is_late=True) for _ in range(3)]
    counts = [{item.request.id: item.count for item in plan.items} for plan in plans]
    assert counts == [{"a": 1}, {"a": 1, "b": 15}, {"a": 1}]
    assert harness.run() == ["a", "b"]
