"""When requests are made."""

import asyncio
import time

import pytest

from multiflora.server.load_test.arrival import Arrival, drive
from multiflora.server.load_test.outcome import Outcome

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Asked:
    """Counts what runs at once; each request takes ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.numbers: list[int] = []
        self.began: list[float] = []
        self.running = self.most = 0

    async def __call__(self, number: int) -> Outcome:
        self.numbers.append(number)
        self.began.append(time.perf_counter())
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(self.seconds)
        self.running -= 1
        return Outcome(name="a", seconds=self.seconds)


async def test_clients_ask_again_when_they_are_answered() -> None:
    asked = Asked(0.001)
    ended = []
    run = await drive(asked, Arrival(concurrency=3, num_requests=20), on_end=ended.append)
    assert sorted(asked.numbers) == list(range(20))
    assert asked.most == 3
    assert run.outcomes == ended
    assert len(ended) == 20


async def test_requests_at_a_rate_do_not_wait_for_others() -> None:
    asked = Asked(0.2)
    run = await drive(asked, Arrival(rate=500.0, num_requests=30))
    assert asked.most > 10
    assert len(run.outcomes) == 30
    assert run.seconds >= 0.2
    again = Asked(0.0)
    await drive(again, Arrival(rate=500.0, num_requests=30, seed=1))
    assert again.numbers == list(range(30))


async def test_nothing_begins_after_the_time_is_up() -> None:
    asked = Asked(0.01)
    run = await drive(asked, Arrival(concurrency=2, seconds=0.1))
    assert asked.began[-1] - asked.began[0] < 0.11
    assert 2 < len(run.outcomes) <= 22


async def test_what_asking_raises_ends_the_run() -> None:
    async def ask(number: int) -> Outcome:
        raise RuntimeError("no")

    with pytest.raises(ExceptionGroup):
        await drive(ask, Arrival(concurrency=2, num_requests=4))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"num_requests": 1}, "either a concurrency or a rate"),
        ({"num_requests": 1, "concurrency": 1, "rate": 1.0}, "either a concurrency or a rate"),
        ({"concurrency": 1}, "otherwise it never ends"),
        ({"concurrency": 0, "num_requests": 1}, "concurrency is 0"),
        ({"rate": float("nan"), "num_requests": 1}, "rate is nan"),
        ({"rate": 1.0, "seconds": -1.0}, "seconds is -1.0"),
    ],
)
async def test_an_arrival_that_cannot_be_meant_is_refused(settings, complaint) -> None:
    with pytest.raises(ValueError, match=complaint):
        Arrival(**settings)
