"""What is let in, what is turned away, and what it is told."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiflora.engine.request import FinishReason, GenerationRequest
from multiflora.server.access.caller import Caller
from multiflora.server.admission import Admission, AdmissionLimits, Order
from multiflora.server.app import create_app
from multiflora.server.rate_limit import Bucket, Meters, RateLimits, parse_limits
from multiflora.server.refusal import QueueFull, RateLimited
from multiflora.server.service import Service
from multiflora.server.throughput import Throughput

pytestmark = pytest.mark.anyio


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def order(num_sequences: int = 1, num_tokens: int = 10, **fields: Any) -> Order:
    usual = {"caller": Caller(), "adapter": None, "num_prompt_tokens": num_tokens}
    return Order(num_sequences=num_sequences, num_tokens=num_tokens, **{**usual, **fields})


def test_the_queue_is_bounded_by_sequences_and_by_tokens() -> None:
    admission = Admission(AdmissionLimits(max_queued_requests=4, max_queued_tokens=100))
    with ExitStack() as held:
        tickets = [held.enter_context(admission.admitted(order())) for _ in range(3)]
        for refused in (order(2), order(num_tokens=71)):
            with pytest.raises(QueueFull), admission.admitted(refused):
                pass
        # Who has its first token waits no more.
        tickets[0].begin()
        tickets[0].begin()
        held.enter_context(admission.admitted(order(2)))
        with pytest.raises(QueueFull):
            admission.check_room()
    assert (admission.num_waiting, admission.num_waiting_tokens) == (0, 0)


def test_a_request_above_a_bound_runs_alone() -> None:
    admission = Admission(AdmissionLimits(max_queued_requests=1, max_queued_tokens=5))
    with (
        admission.admitted(order(8, num_tokens=100)),
        pytest.raises(QueueFull),
        admission.admitted(order(num_tokens=1)),
    ):
        pass


def test_the_wait_is_the_queue_over_the_throughput() -> None:
    clock = Clock()
    admission = Admission(AdmissionLimits(max_queued_requests=3), clock=clock)
    with admission.admitted(order(num_tokens=100)) as ticket:
        ticket.begin()
        clock.now = 2.0
    assert admission.wait_seconds() == 0.0
    with admission.admitted(order(num_tokens=150)), admission.admitted(order(num_tokens=100)):
        assert admission.wait_seconds() == pytest.approx(250 / 50, rel=0.1)
        impatient = order(timeout_seconds=4.0)
        with pytest.raises(QueueFull, match="about 4"), admission.admitted(impatient):
            pass
        with admission.admitted(order(timeout_seconds=6.0)):
            with pytest.raises(QueueFull) as refusal:
                admission.check_room()
            assert refusal.value.retry_after_seconds == pytest.approx(260 / 50, rel=0.1)


def test_readiness_falls_before_the_queue_is_full_and_comes_back_later() -> None:
    admission = Admission(AdmissionLimits(max_queued_requests=10))
    with ExitStack() as held:
        tickets = [held.enter_context(admission.admitted(order())) for _ in range(7)]
        assert not admission.is_saturated
        tickets.append(held.enter_context(admission.admitted(order())))
        assert admission.is_saturated
        for ticket in tickets[:3]:
            ticket.begin()
        assert admission.is_saturated, "five of ten are not yet few"
        tickets[3].begin()
        assert not admission.is_saturated


def test_a_keys_and_an_adapters_limits_are_their_own() -> None:
    clock = Clock()
    limits = AdmissionLimits(adapter=RateLimits(max_concurrent=2))
    admission = Admission(limits, clock=clock)
    red = Caller(id="red", limits=RateLimits(requests_per_minute=2))
    for _ in range(2):
        with admission.admitted(order(caller=red)):
            pass
    with pytest.raises(RateLimited, match="2 requests a minute") as refusal:
        admission.admitted(order(caller=red)).__enter__()
    assert refusal.value.retry_after_seconds == pytest.approx(30)
    with admission.admitted(order(caller=Caller(id="blue"))):
        pass
    clock.now = 30.0
    with admission.admitted(order(caller=red)):
        pass
    with admission.admitted(order(adapter="a")), admission.admitted(order(adapter="a")):
        with pytest.raises(RateLimited, match="2 requests at a time"):
            admission.admitted(order(adapter="a")).__enter__()
        with admission.admitted(order(adapter="b")), admission.admitted(order()):
            pass


def test_tokens_that_were_not_needed_are_given_back() -> None:
    clock = Clock()
    key = Caller(id="k", limits=RateLimits(tokens_per_minute=100))
    admission = Admission(clock=clock)
    asked = order(caller=key, num_tokens=90, num_prompt_tokens=10)
    with admission.admitted(asked) as ticket:
        ticket.num_answered = lambda: 5
    with admission.admitted(order(caller=key, num_tokens=85, num_prompt_tokens=5)):
        again = admission.admitted(order(caller=key, num_tokens=1))
        with pytest.raises(RateLimited):
            again.__enter__()


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 50)), max_size=60))
def test_a_bucket_never_gives_more_than_its_rate_and_one_minute(
    steps: Sequence[tuple[float, int]],
) -> None:
    bucket, now, taken = Bucket(100, now=0.0), 0.0, 0
    for pause, amount in steps:
        now += pause
        if bucket.wait_for(amount, now=now) == 0:
            bucket.take(amount, now=now)
            taken += amount
        assert taken <= 100 + now * 100 / 60 + 1e-6


def test_idle_meters_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiflora.server.rate_limit._MAX_IDLE_METERS", 3)
    clock = Clock()
    meters = Meters(clock)
    busy = meters.of("busy", RateLimits(max_concurrent=1))
    busy.begin(1, now=0)
    for name in "abcdef":
        meters.of(name, RateLimits(requests_per_minute=1))
    assert len(meters) <= 4
    assert meters.of("busy", RateLimits(max_concurrent=1)) is busy


def test_throughput_counts_busy_seconds_only() -> None:
    clock = Clock()
    throughput = Throughput(clock)
    assert throughput.per_second() is None
    for start in (0.0, 500.0):
        clock.now = start
        with throughput.busy():
            clock.now = start + 3
            throughput.add(60)
    assert throughput.per_second() == pytest.approx(20, rel=0.2)


@pytest.mark.parametrize("text", ["requests", "requests=-1", "speed=3", "tokens=1.5", "tokens=0"])
def test_limits_that_say_nothing_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_limits(text)


async def test_a_full_queue_is_429_and_readiness_falls(
    service: Service, engine: Any, client: httpx.AsyncClient, complete: Callable[..., Any]
) -> None:
    service.admission.limits = AdmissionLimits(max_queued_requests=2)
    engine.script = lambda request: [0.2, *engine.say(request)]
    running = [asyncio.create_task(complete()) for _ in range(2)]
    await asyncio.sleep(0.05)
    refused = await complete()
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "queue_full"
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert int(refused.headers["retry-after"]) >= 1
    assert int(refused.headers["retry-after-ms"]) >= 100
    assert (await client.get("/ready")).json()["error"]["code"] == "saturated"
    assert [(await task).status_code for task in running] == [200, 200]
    assert (await client.get("/ready")).status_code == 200
    page = (await client.get("/metrics")).text
    assert 'multiflora_admission_refusals_total{reason="queue_full"} 1.0' in page


@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_ends_the_work(
    service: Service, engine: Any, client: httpx.AsyncClient, stream: bool
) -> None:
    engine.script = lambda request: [30, *engine.say(request)]
    response = await client.post(
        "/v1/completions",
        json={"model": "base", "prompt": "hi", "stream": stream},
        headers={"x-request-timeout-ms": "40"},
    )
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "deadline_exceeded"
    assert engine.closed_early == [engine.requests[0].id]
    assert service.admission.num_waiting == 0


async def test_a_deadline_counts_from_before_the_prompt_is_read(
    service: Service, engine: Any
) -> None:
    class Sleeper:
        async def render(self, messages: Any, **options: Any) -> str:
            await asyncio.sleep(30)
            return ""

    app = create_app(replace(service, chat_template=Sleeper()))
    body = {"model": "base", "messages": [{"role": "user", "content": "hi"}]}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app)) as client:
        headers = {"x-request-timeout-ms": "40"}
        answer = await client.post("http://s/v1/chat/completions", json=body, headers=headers)

    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert engine.requests == []


async def test_a_deadline_in_a_stream_is_its_last_event(
    engine: Any, client: httpx.AsyncClient, read_events: Callable[..., list[Any]]
) -> None:
    def slowly(request: GenerationRequest) -> list[Any]:
        first, *_ = engine.say(request)
        return [first, 30, engine.event(request, [], reason=FinishReason.STOP)]

    engine.script = slowly
    response = await client.post(
        "/v1/completions",
        json={"model": "base", "prompt": "hi", "stream": True},
        headers={"x-request-timeout-ms": "60"},
    )
    assert response.status_code == 200
    assert read_events(response)[-1]["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize("value", ["0", "-1", "soon", "1.5", "9" * 30])
async def test_a_deadline_that_is_no_time_is_refused(client: httpx.AsyncClient, value: str) -> None:
    response = await client.post(
        "/v1/completions",
        json={"model": "base", "prompt": "hi"},
        headers={"x-request-timeout-ms": value},
    )
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "x-request-timeout-ms"
