"""Metrics of a job reach its sinks, and whatever a sink does, the job does not feel it."""

import asyncio
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from multiflora.engine.training.jobs import tracked_job
from multiflora.engine.training.jobs.job import WandbRun
from multiflora.engine.training.jobs.tracking.availability import TrackingUnavailable
from multiflora.engine.training.jobs.tracking.message import Begun, Measured, Message, TrackedRun
from multiflora.engine.training.jobs.tracking.tracker import Tracker
from multiflora.engine.training.jobs.training_jobs import TrainingJobs

from .conftest import World

pytestmark = pytest.mark.anyio


class RecordedSink:
    """Stands for a sink's process; ``fails`` is told of at once."""

    made: ClassVar[list["RecordedSink"]] = []
    fails = False

    def __init__(self, run: TrackedRun, *, on_failure: Any) -> None:
        self.run = run
        self.messages: list[Message] = []
        self.ends: list[bool | None] = []
        self.made.append(self)
        if self.fails:
            on_failure("no key")

    def put(self, message: Message) -> None:
        self.messages.append(message)

    def close(self, succeeded: bool | None) -> None:
        self.ends.append(succeeded)


@pytest.fixture
def sinks(monkeypatch: pytest.MonkeyPatch) -> list[RecordedSink]:
    def make(runs: Any, *, on_failure: Any) -> Tracker:
        return Tracker(runs, on_failure=on_failure, make_sink=RecordedSink)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(tracked_job, "Tracker", make)
    monkeypatch.setattr(RecordedSink, "made", [])
    monkeypatch.setattr(RecordedSink, "fails", False)
    return RecordedSink.made


@pytest.fixture
def tracked_world(world: World) -> World:
    world.shop = replace(world.shop, tracking=("tensorboard", "wandb"))
    world.jobs = TrainingJobs(world.shop)
    return world


async def test_a_sink_hears_every_step_the_gate_and_the_end(
    tracked_world: World, sinks: list[RecordedSink]
) -> None:
    world = tracked_world
    world.engine.eval_losses = {4: 0.5}
    wish = world.wish(suffix="fancy", report_to=("wandb",), wandb=WandbRun(project="ships"))
    done = await world.jobs.wait((await world.jobs.create(wish)).id)
    assert done.status == "succeeded"
    (sink,) = sinks
    assert (sink.run.id, sink.run.name, sink.run.project) == (done.id, "fancy", "ships")
    assert sink.run.config["lora"]["rank"]
    told = [one for one in sink.messages if isinstance(one, Measured)]
    assert [one.step for one in told if "train/loss" in one.values] == [1, 2, 3, 4, 5, 6]
    assert [one.step for one in told if "eval/loss" in one.values] == [4]
    assert told[-1].values["gate/end_rate"] == 1.0
    assert sink.ends == [True]


async def test_a_failed_sink_is_one_warning_and_no_more(
    tracked_world: World, sinks: list[RecordedSink], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RecordedSink, "fails", True)
    wish = tracked_world.wish(report_to=("tensorboard",))
    done = await tracked_world.jobs.wait((await tracked_world.jobs.create(wish)).id)
    assert done.status == "succeeded"
    log = tracked_world.messages(done.id)
    assert log.count("tensorboard gets no metrics of this job: no key") == 1


async def test_a_job_that_goes_on_is_the_same_run_again(
    tracked_world: World, sinks: list[RecordedSink]
) -> None:
    world = tracked_world
    world.engine.num_steps = 200
    job = await world.jobs.create(world.wish(report_to=("wandb",)))
    while not world.engine.done:
        await asyncio.sleep(0.002)
    await world.jobs.stop()
    world.jobs = TrainingJobs(world.shop)
    await world.jobs.start()
    assert (await world.jobs.wait(job.id)).status == "succeeded"
    first, second = sinks
    assert first.run.id == second.run.id == job.id
    assert (first.ends, second.ends) == ([None], [True])
    begun = [one.step for one in second.messages if isinstance(one, Begun)]
    assert begun[0] > 0


async def test_a_sink_that_may_not_be_used_makes_no_job(world: World) -> None:
    with pytest.raises(TrackingUnavailable, match="--tracking"):
        await world.jobs.create(world.wish(report_to=("trackio",)))
    assert world.jobs.rows.page() == ([], False)


async def test_a_sink_that_is_taken_away_is_a_warning(
    tracked_world: World, sinks: list[RecordedSink]
) -> None:
    world = tracked_world
    job = await world.jobs.create(world.wish(report_to=("wandb",)))
    await world.jobs.stop()
    world.jobs = TrainingJobs(replace(world.shop, tracking=()))
    await world.jobs.start()
    assert (await world.jobs.wait(job.id)).status == "succeeded"
    assert sinks == []
    assert any("wandb gets no metrics" in text for text in world.messages(job.id))
