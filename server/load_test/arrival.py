"""When requests are made: as soon as others end, or at random at a rate whatever others do."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random

from .outcome import Outcome

Ask = Callable[[int], Awaitable[Outcome]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """``concurrency`` clients that ask again when answered, or ``rate`` requests per second.

    The gaps between arrivals at a rate are drawn as those of a Poisson process. No request begins
    after ``num_requests`` or ``seconds``, whichever comes first; those under way are waited for.
    """

    concurrency: int | None = None
    rate: float | None = None
    num_requests: int | None = None
    seconds: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.concurrency is None) == (self.rate is None):
            raise ValueError("give either a concurrency or a rate of requests")
        if self.num_requests is None and self.seconds is None:
            raise ValueError("give a number of requests, or seconds; otherwise it never ends")
        for name in ("concurrency", "rate", "num_requests", "seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; it must be above 0")


@dataclass(frozen=True, slots=True)
class Run:
    """All outcomes, in the order in which they ended, and the seconds from first to last."""

    outcomes: list[Outcome]
    seconds: float


async def drive(
    ask: Ask, arrival: Arrival, *, on_end: Callable[[Outcome], None] = lambda outcome: None
) -> Run:
    """Call ``ask`` with 0, 1, 2, ... as ``arrival`` says; what it raises ends the run."""
    outcomes: list[Outcome] = []

    async def one(number: int) -> None:
        outcome = await ask(number)
        outcomes.append(outcome)
        on_end(outcome)

    started = time.perf_counter()
    if arrival.concurrency is not None:
        await _closed(one, arrival, arrival.concurrency, started)
    else:
        await _open(one, arrival, arrival.rate or 0.0, started)
    return Run(outcomes, time.perf_counter() - started)


def _is_over(arrival: Arrival, number: int, started: float) -> bool:
    if arrival.num_requests is not None and number >= arrival.num_requests:
        return True
    return arrival.seconds is not None and time.perf_counter() - started >= arrival.seconds


async def _closed(
    one: Callable[[int], Awaitable[None]], arrival: Arrival, concurrency: int, started: float
) -> None:
    numbers = itertools.count()

    async def client() -> None:
        while not _is_over(arrival, number := next(numbers), started):
            await one(number)

    async with asyncio.TaskGroup() as clients:
        for _ in range(concurrency):
            clients.create_task(client())


async def _open(
    one: Callable[[int], Awaitable[None]], arrival: Arrival, rate: float, started: float
) -> None:
    draw, due = Random(arrival.seed), started
    async with asyncio.TaskGroup() as requests:
        for number in itertools.count():
            # At zero too: tasks that are due begin before the next is made.
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if _is_over(arrival, number, started):
                return
            requests.create_task(_awaited(one, number))
            due += draw.expovariate(rate)


async def _awaited(one: Callable[[int], Awaitable[None]], number: int) -> None:
    await one(number)
