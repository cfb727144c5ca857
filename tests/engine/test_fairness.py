"""Turns go by tokens served, not by arrival, and idling earns nothing."""

from multiflora.engine.active_request import ActiveRequest
from multiflora.engine.fairness import FairQueue
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


def test_the_oldest_waiting_request_is_known() -> None:
    queue = FairQueue()
    assert queue.oldest() is None
    young, old = make("young", "a"), make("old", "b")
    young.waiting_since, old.waiting_since = 9, 2
    queue.add(young)
    queue.add(old)
    assert queue.oldest() is old
