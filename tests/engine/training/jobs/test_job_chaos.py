"""Whatever is asked for and whatever dies: every acknowledged job ends once, and as it says."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multiflora.engine.training.jobs.error import JobOver

from .conftest import World

ENDS = ("has successfully completed", "has been cancelled", "The job failed")
ACTIONS = ("create", "pause", "resume", "cancel", "engine", "server", "work")
STEPS = st.lists(
    st.tuples(st.sampled_from(ACTIONS), st.integers(0, 3), st.integers(0, 12)), max_size=14
)


async def act(world: World, made: list[str], action: str, which: int, turns: int) -> None:
    if action == "create" or not made:
        wish = world.wish(suffix=f"result-{len(made)}")
        made.append((await world.jobs.create(wish)).id)
    elif action in ("pause", "resume", "cancel"):
        ask: Callable[[str], Coroutine[Any, Any, Any]] = getattr(world.jobs, action)
        with suppress(JobOver):
            await ask(made[which % len(made)])
    elif action == "engine":
        world.engine.die()
        await asyncio.sleep(0.001 * turns)
        world.engine.is_alive = True
    elif action == "server":
        await world.jobs.stop()
        world.restart()
        await world.jobs.start()
    for _ in range(turns):
        await asyncio.sleep(0.0005)


async def play(world: World, steps: list[tuple[str, int, int]]) -> None:
    made: list[str] = []
    for step in steps:
        await act(world, made, *step)
    for job_id in made:
        with suppress(JobOver):
            await world.jobs.resume(job_id)
        await asyncio.wait_for(world.jobs.wait(job_id), 20)
    for number, job_id in enumerate(made):
        check(world, job_id, f"result-{number}")


def check(world: World, job_id: str, name: str) -> None:
    job = world.jobs.rows.get(job_id)
    ends = [text for text in world.messages(job_id) if any(end in text for end in ENDS)]
    assert job.status in ("succeeded", "cancelled")
    assert len(ends) == 1
    assert (name in world.publishing.names) == (job.status == "succeeded")
    assert job.finished is not None
    assert not job.is_paused
    if job.status == "succeeded":
        # An engine may die with metrics on its lips, after the checkpoint that has their steps.
        steps = [row["step"] for row in world.jobs.rows.metrics(job_id)]
        assert steps == sorted(set(steps))


@pytest.mark.parametrize("num_steps", [1, 8])
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS)
def test_every_job_ends_once_and_publishes_only_if_it_succeeds(
    new_world: Callable[[], World], num_steps: int, steps: list[tuple[str, int, int]]
) -> None:
    world = new_world()
    world.engine.num_steps = num_steps
    asyncio.run(play(world, steps))
