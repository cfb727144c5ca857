"""Jobs from the API process: their events arrive, and they survive the engine's death."""

import asyncio
import dataclasses
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from multiflora.engine.client import EngineClient, EngineState
from multiflora.engine.config import BaseConfig, CacheConfig, EngineConfig
from multiflora.engine.errors import EngineUnavailable, RequestFailed
from multiflora.engine.training.job import (
    CheckpointExported,
    JobEnded,
    JobEvent,
    JobPaused,
    JobQueued,
    JobResumed,
    JobStarted,
    StepMetrics,
    TrainingJob,
)
from multiflora.engine.transport import ProcessTransport

from .job_bench import PATIENT, SETTINGS, assert_equal, tensors

Scenario = Callable[[EngineClient], Coroutine[Any, Any, None]]


@pytest.fixture
def config(model_folder: Callable[[str], Path], tmp_path: Path) -> EngineConfig:
    return EngineConfig(
        base=BaseConfig(model=str(model_folder("llama")), dtype="float32"),
        device="cpu",
        data_dir=str(tmp_path),
        cache=CacheConfig(memory_bytes=8 << 20),
        training=PATIENT,
    )


def play(client: EngineClient, scenario: Scenario) -> None:
    """Start, run ``scenario``, stop; the whole within two minutes."""

    async def run() -> None:
        async with asyncio.timeout(120):
            await client.start()
            try:
                await scenario(client)
            finally:
                await client.stop()

    asyncio.run(run())


async def collect(client: EngineClient, job: TrainingJob) -> list[JobEvent]:
    return [event async for event in client.train(job)]


def test_a_client_sees_a_job_from_its_queue_to_its_end(
    config: EngineConfig, make_job: Callable[..., TrainingJob]
) -> None:
    async def scenario(client: EngineClient) -> None:
        events = []
        async for event in client.train(make_job()):
            events.append(event)
            if event == StepMetrics(2, getattr(event, "metrics", {})):
                with pytest.raises(RequestFailed, match="is running"):
                    await collect(client, make_job())
                client.pause_training("job")
            if isinstance(event, JobPaused):
                assert (await client.stats()).training.num_paused == 1
                client.resume_training("job")
        kinds = [type(event) for event in events if not isinstance(event, StepMetrics)]
        assert kinds[:2] == [JobQueued, JobStarted]
        assert kinds[-1] is JobEnded
        assert {JobPaused, JobResumed, CheckpointExported} <= set(kinds)
        assert (await client.stats()).training.steps == 6

    play(EngineClient.in_this_process(config), scenario)


def test_leaving_a_job_cancels_it(
    config: EngineConfig, make_job: Callable[..., TrainingJob]
) -> None:
    async def scenario(client: EngineClient) -> None:
        stream = client.train(make_job())
        async for event in stream:
            if isinstance(event, StepMetrics):
                break
        await stream.aclose()
        client.cancel_training("nobody")
        while (await client.stats()).training.bytes_used:
            await asyncio.sleep(0.01)
        assert (await client.stats()).training.steps < 6
        assert isinstance((await collect(client, make_job("next")))[-1], JobEnded)

    play(EngineClient.in_this_process(config), scenario)


def test_without_an_engine_nothing_can_be_trained(
    config: EngineConfig, make_job: Callable[..., TrainingJob]
) -> None:
    client = EngineClient.in_this_process(config)
    with pytest.raises(EngineUnavailable):
        client.train(make_job())
    for call in (client.pause_training, client.resume_training, client.cancel_training):
        with pytest.raises(EngineUnavailable):
            call("job")


async def kill_after_a_checkpoint(client: EngineClient, job: TrainingJob) -> None:
    assert isinstance(client.transport, ProcessTransport)
    async for event in client.train(job):
        if isinstance(event, CheckpointExported) and client.transport.pid:
            os.kill(client.transport.pid, signal.SIGKILL)


@pytest.mark.full
def test_a_job_goes_on_after_the_engine_was_killed(
    config: EngineConfig, make_job: Callable[..., TrainingJob]
) -> None:
    batch = dataclasses.replace(SETTINGS.batch, num_epochs=10)
    settings = dataclasses.replace(SETTINGS, batch=batch)

    async def scenario(client: EngineClient) -> None:
        with pytest.raises(EngineUnavailable):
            await kill_after_a_checkpoint(client, make_job(settings=settings))
        while client.state is not EngineState.READY:
            await asyncio.sleep(0.05)
        resumed = await collect(client, make_job(settings=settings))
        started = next(event for event in resumed if isinstance(event, JobStarted))
        assert 2 <= started.step < started.num_steps == 30
        whole = await collect(client, make_job("whole", settings=settings))
        assert_equal(tensors(resumed[-1].folder), tensors(whole[-1].folder))  # type: ignore[union-attr]

    play(EngineClient.in_process_of_its_own(config), scenario)
