"""Turns go by tokens served, not by arrival, and idling earns nothing."""

from dataclasses import replace

from multiflora.engine.active_request import ActiveRequest
from multiflora.engine.fairness import FairQueue, TokenCounters
from multiflora.engine.request import AdapterShare, GenerationRequest, SamplingParams


def make(id: str, name: str | None, arrival: int = 0) -> ActiveRequest:
    shares = (AdapterShare(name),) if name else ()
    sampling = SamplingParams(max_tokens=1)
    request = GenerationRequest(id=id, prompt=(1,), sampling=sampling, adapters=shares)
    return ActiveRequest(request, arrival)


def test_the_adapter_with_fewest_tokens_goes_first() -> None:
    queue = FairQueue()
    hot, cold = make("hot", "a", 0), make("cold", "b", 1)
    queue.add(hot)
    queue.add(cold)
    assert queue.candidates() == [hot, cold]
    queue.charge(hot, 100)
    assert queue.candidates() == [cold, hot]


def test_an_adapter_that_was_idle_gets_no_credit() -> None:
    queue = FairQueue()
    busy = make("busy", "a", 0)
    queue.add(busy)
    queue.charge(busy, 1000)
    newcomer = make("new", "b", 1)
    queue.add(newcomer)
    queue.charge(newcomer, 10)
    assert queue.candidates() == [busy, newcomer]


def test_order_within_an_adapter_is_arrival_and_preempted_ones_come_back_first() -> None:
    queue = FairQueue()
    first, second, preempted = (make(str(n), "a", n) for n in range(3))
    queue.add(first)
    queue.add(second)
    queue.add(preempted, first=True)
    assert queue.candidates() == [preempted]
    queue.remove(preempted)
    assert queue.candidates() == [first]
    assert len(queue) == 2


def test_the_base_is_a_client_like_any_adapter() -> None:
    queue = FairQueue()
    base, other = make("base", None, 0), make("other", "a", 1)
    queue.add(base)
    queue.add(other)
    queue.charge(base, 5)
    assert queue.candidates() == [other, base]


def of_tenant(id: str, tenant: str, name: str, arrival: int) -> ActiveRequest:
    request = replace(make(id, name).request, tenant=tenant)
    return ActiveRequest(request, arrival)


def test_a_tenant_with_many_adapters_gets_one_share() -> None:
    queue = FairQueue()
    many = [of_tenant(f"m{n}", "many", f"adapter-{n}", n) for n in range(4)]
    one = of_tenant("one", "one", "adapter-9", 9)
    for request in (*many, one):
        queue.add(request)
    queue.remove(many[0])
    queue.charge(many[0], 50)
    assert queue.candidates() == [one, *many[1:]]


def test_an_adapter_of_many_tenants_gets_one_share() -> None:
    queue = FairQueue()
    shared = [of_tenant(f"s{n}", f"tenant-{n}", "shared", n) for n in range(3)]
    quiet = of_tenant("quiet", "tenant-9", "own", 9)
    for request in (*shared, quiet):
        queue.add(request)
    queue.remove(shared[0])
    queue.charge(shared[0], 50)
    assert queue.candidates()[0] is quiet


def test_a_backlog_does_not_starve_while_it_gets_turns() -> None:
    queue = FairQueue()
    served, next_in_line = make("served", "busy", 0), make("next", "busy", 1)
    other = make("other", "quiet", 2)
    other.waiting_since = 3
    for request in (served, next_in_line, other):
        queue.add(request)
    queue.remove(served)
    queue.note_turn(served, 8)
    assert queue.passed_over_since(next_in_line) == 8
    assert queue.passed_over_since(other) == 3


def test_counters_of_those_who_left_do_not_pile_up() -> None:
    counters = TokenCounters()
    counters.charge("busy", 10)
    for number in range(5000):
        counters.lift(number, ["busy"])
    assert len(counters) < 5000
    counters.lift("late", ["busy"])
    assert counters.of("late") == counters.of("busy")
