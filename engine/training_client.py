"""The part of the engine's async face that is about training jobs."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

from .errors import EngineUnavailable, RequestFailed
from .messages import CancelTraining, Command, PauseTraining, ResumeTraining, StartTraining
from .training.job import JobEnded, JobEvent, JobFailed, TrainingJob


class TrainingClient:
    """Submits jobs and routes their events; ``send`` raises ``EngineUnavailable``."""

    def __init__(self, send: Callable[[Command], None]) -> None:
        self._send = send
        self._streams: dict[str, asyncio.Queue[JobEvent | EngineUnavailable]] = {}

    async def train(self, job: TrainingJob) -> AsyncGenerator[JobEvent]:
        """Events until ``JobEnded`` or ``JobFailed``; closing the iterator early cancels the job.

        Raises ``RequestFailed`` if the id is in use, and ``EngineUnavailable`` if there is no
        engine or it dies: the same job goes on from its last checkpoint when it is sent again.
        """
        if job.id in self._streams:
            raise RequestFailed(f"training job {job.id} is running", code="invalid_request")
        self._send(StartTraining(job.document()))
        events = self._streams[job.id] = asyncio.Queue()
        is_over = False
        try:
            while not is_over:
                event = await events.get()
                is_over = isinstance(event, JobEnded | JobFailed | EngineUnavailable)
                if isinstance(event, EngineUnavailable):
                    raise event
                yield event
        finally:
            del self._streams[job.id]
            if not is_over:
                with contextlib.suppress(EngineUnavailable):
                    self._send(CancelTraining(job.id))

    def pause(self, job_id: str) -> None:
        """Stop within one quantum; without effect on a job that has ended."""
        self._send(PauseTraining(job_id))

    def resume(self, job_id: str) -> None:
        """Go on, at once or after the job that runs; without effect on one that is not paused."""
        self._send(ResumeTraining(job_id))

    def cancel(self, job_id: str) -> None:
        """End a job within one quantum; without effect on one that has ended."""
        self._send(CancelTraining(job_id))

    def on_event(self, job_id: str, event: JobEvent) -> None:
        """Route one event to whoever waits for it."""
        if stream := self._streams.get(job_id):
            stream.put_nowait(event)

    def on_end(self, died: EngineUnavailable) -> None:
        """The engine is gone, and its jobs with it."""
        for stream in self._streams.values():
            stream.put_nowait(died)
