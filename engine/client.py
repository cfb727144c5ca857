"""The async face of the engine: the only bridge between the server and the engine."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from enum import StrEnum
from typing import Any, Self

from multiflora.adapters.error import AdapterRejected
from multiflora.adapters.tier import Tier

from .config import EngineConfig
from .errors import (
    BaseNotFound,
    EngineLoading,
    EngineOverloaded,
    EngineUnavailable,
    InvalidCheckpoint,
    NotEnoughMemory,
    RequestFailed,
    StartupError,
    UnsupportedModel,
)
from .event_queue import EventQueue
from .messages import (
    Abort,
    Adapters,
    Events,
    GetAdapters,
    GetStats,
    LoadVersion,
    Pin,
    PinFailed,
    Progress,
    Ready,
    Report,
    StartFailed,
    Stats,
    Submit,
    Trained,
    UnloadVersion,
    Unpin,
    VersionFailed,
    VersionLoaded,
    VersionPinned,
)
from .request import EngineInfo, EngineStats, FinishReason, GenerationRequest, TokenEvent
from .training.job import JobEvent, TrainingJob
from .training_client import TrainingClient
from .transport import ProcessTransport, ThreadTransport, Transport

logger = logging.getLogger(__name__)

_STARTUP_ERRORS = {
    error.code: error
    for error in (BaseNotFound, UnsupportedModel, InvalidCheckpoint, NotEnoughMemory)
}
_FIRST_RESTART_SECONDS = 0.1
_LAST_RESTART_SECONDS = 30.0


class EngineState(StrEnum):
    """Where the engine is in its life; requests are taken in ``READY`` only."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPED = "stopped"


class EngineClient:
    """Submits requests and routes their events; restarts the engine when it dies.

    All methods belong to one event loop. An engine that dies ends every open stream with
    ``RequestFailed`` (code ``engine_died``) and is started again, with growing pauses, until
    ``stop``.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.on_progress: Callable[[str, float], None] = lambda stage, fraction: None
        self._state = EngineState.STOPPED
        self._info: EngineInfo | None = None
        self._started: asyncio.Future[EngineInfo] | None = None
        self._streams: dict[str, EventQueue] = {}
        self._versions: dict[str, asyncio.Future[None]] = {}
        self._kept_versions: dict[str, None] = {}
        self._pins: dict[str, asyncio.Future[None]] = {}
        self._pinned_versions: dict[str, None] = {}
        self._stats: list[asyncio.Future[EngineStats]] = []
        self._tiers: list[asyncio.Future[dict[str, Tier]]] = []
        self._training = TrainingClient(transport.send)
        self._restarting: asyncio.Task[None] | None = None
        self.num_restarts = 0

    @classmethod
    def in_process_of_its_own(cls, config: EngineConfig) -> Self:
        """How servers run an engine."""
        return cls(ProcessTransport(config))

    @classmethod
    def in_this_process(cls, config: EngineConfig) -> Self:
        """How tests and scripts run an engine."""
        return cls(ThreadTransport(config))

    @property
    def state(self) -> EngineState:
        return self._state

    @property
    def info(self) -> EngineInfo:
        """Raises ``EngineUnavailable`` until the engine was ready once."""
        if self._info is None:
            raise EngineLoading("the engine has not started yet")
        return self._info

    @property
    def num_streams(self) -> int:
        """Requests that are open right now."""
        return len(self._streams)

    async def start(self) -> EngineInfo:
        """Start the engine and wait until it is ready. Raises ``StartupError``."""
        self._state = EngineState.STARTING
        return await self._launch()

    async def _launch(self) -> EngineInfo:
        self._started = asyncio.get_running_loop().create_future()
        await self.transport.start(self._on_report, self._on_end)
        return await self._started

    async def stop(self) -> None:
        """Stop the engine; open streams end with an error."""
        self._state = EngineState.STOPPED
        if self._restarting:
            self._restarting.cancel()
        await self.transport.stop()

    def kill(self) -> None:
        """End an engine that answers no more; it is started again as if it had died."""
        self.transport.kill()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent]:
        """Submit and receive events, joined where the caller is slower than the engine.

        Closing the iterator early aborts the request.

        Raises ``EngineUnavailable`` (``EngineOverloaded`` if the queue is full) when it cannot be
        submitted, ``RequestFailed`` if the engine ends it with an error or dies.
        """
        self._require_ready()
        if request.id in self._streams:
            raise RequestFailed(f"request id {request.id} is in use", code="invalid_request")
        events = self._streams[request.id] = EventQueue()
        is_finished = False
        try:
            self.transport.send(Submit(request))
            while not is_finished:
                event = await events.get()
                is_finished = event.finish_reason is not None
                if event.finish_reason is FinishReason.ERROR:
                    raise _failure(event)
                yield event
        finally:
            del self._streams[request.id]
            if not is_finished:
                with contextlib.suppress(EngineUnavailable):
                    self.transport.send(Abort(request.id))

    def train(self, job: TrainingJob) -> AsyncGenerator[JobEvent]:
        """Run a job while requests are served, and receive its events; see ``TrainingClient``.

        Raises ``EngineUnavailable`` without an engine.
        """
        self._require_ready()
        return self._training.train(job)

    def pause_training(self, job_id: str) -> None:
        self._require_ready()
        self._training.pause(job_id)

    def resume_training(self, job_id: str) -> None:
        self._require_ready()
        self._training.resume(job_id)

    def cancel_training(self, job_id: str) -> None:
        self._require_ready()
        self._training.cancel(job_id)

    async def load_version(self, digest: str) -> None:
        """Bring a stored version into memory and keep it over restarts.

        Raises ``AdapterRejected`` if that fails.
        """
        self._kept_versions[digest] = None
        try:
            await self.warm(digest)
        except AdapterRejected:
            self._kept_versions.pop(digest, None)
            raise

    async def warm(self, digest: str) -> None:
        """Load a version once: to the device if it has free room, else to host memory.

        Raises ``AdapterRejected`` if it cannot be loaded, ``EngineUnavailable`` without an engine.
        """
        self._require_ready()
        waiting = self._versions.get(digest)
        if waiting is None:
            self.transport.send(LoadVersion(digest))
            waiting = self._versions[digest] = asyncio.get_running_loop().create_future()
        await asyncio.shield(waiting)

    async def unload_version(self, digest: str) -> None:
        """Free a version's memory once no request uses it and no pin keeps it."""
        self._kept_versions.pop(digest, None)
        self._require_ready()
        self.transport.send(UnloadVersion(digest))

    async def pin(self, digest: str) -> None:
        """Bring a version to the device and keep it there, over restarts too, until ``unpin``.

        Returns when it is there. Raises ``AdapterRejected`` if it cannot be loaded or pins leave no
        room for it, ``EngineUnavailable`` if the engine is not there or dies meanwhile; it is not
        pinned then.
        """
        self._require_ready()
        if digest in self._pins or digest not in self._pinned_versions:
            await self._pin(digest)

    async def _pin(self, digest: str) -> None:
        waiting = self._pins.get(digest)
        if waiting is None:
            self.transport.send(Pin(digest))
            waiting = self._pins[digest] = asyncio.get_running_loop().create_future()
        await asyncio.shield(waiting)

    async def unpin(self, digest: str) -> None:
        """Let a version be evicted again. Needs no engine: a new one pins what is pinned here."""
        self._pinned_versions.pop(digest, None)
        if waiting := self._pins.pop(digest, None):
            _settle(waiting, AdapterRejected("unpinned", "the version was unpinned meanwhile"))
        with contextlib.suppress(EngineUnavailable):
            self.transport.send(Unpin(digest))

    @property
    def pinned_versions(self) -> tuple[str, ...]:
        """Versions that are pinned or on their way to be."""
        return tuple(self._pinned_versions | dict.fromkeys(self._pins))

    async def adapter_states(self) -> dict[str, Tier]:
        """The tier of every version in memory; one that is not listed is on disk.

        Raises ``EngineUnavailable`` if there is no engine.
        """
        self._require_ready()
        answer: asyncio.Future[dict[str, Tier]] = asyncio.get_running_loop().create_future()
        self._tiers.append(answer)
        self.transport.send(GetAdapters())
        return await answer

    async def stats(self) -> EngineStats:
        """Counters of the running engine. Raises ``EngineUnavailable`` if there is none."""
        self._require_ready()
        answer: asyncio.Future[EngineStats] = asyncio.get_running_loop().create_future()
        self._stats.append(answer)
        self.transport.send(GetStats())
        return await answer

    def _require_ready(self) -> None:
        if self._state is not EngineState.READY:
            is_loading = self._state is not EngineState.STOPPED
            kind = EngineLoading if is_loading else EngineUnavailable
            raise kind(f"the engine is {self._state.value}; try again shortly")

    def _on_report(self, report: Report) -> None:
        match report:
            case Events(events):
                for event in events:
                    if stream := self._streams.get(event.request_id):
                        stream.put(event)
            case Ready(info):
                self._info = info
                if self._state is not EngineState.STOPPED:
                    self._state = EngineState.READY
                self._settle_start(info)
            case StartFailed(code, message):
                self._settle_start(_STARTUP_ERRORS.get(code, StartupError)(message))
            case Progress(stage, fraction):
                self.on_progress(stage, fraction)
            case VersionLoaded(digest):
                self._settle_version(digest, None)
            case VersionFailed(digest, code, message):
                self._settle_version(digest, AdapterRejected(code, message))
            case VersionPinned(digest):
                self._settle_pin(digest, None)
            case PinFailed(digest, code, message):
                self._settle_pin(digest, AdapterRejected(code, message))
            case Adapters(tiers):
                _settle(self._tiers.pop(0), tiers)
            case Stats(stats):
                _settle(self._stats.pop(0), stats)
            case Trained(job_id, event):
                self._training.on_event(job_id, event)

    def _settle_start(self, outcome: EngineInfo | StartupError) -> None:
        if self._started:
            _settle(self._started, outcome)

    def _settle_version(self, digest: str, error: AdapterRejected | None) -> None:
        if waiting := self._versions.pop(digest, None):
            _settle(waiting, error)

    def _settle_pin(self, digest: str, error: AdapterRejected | None) -> None:
        if waiting := self._pins.pop(digest, None):
            if error is None:
                self._pinned_versions[digest] = None
            else:
                self._pinned_versions.pop(digest, None)
            _settle(waiting, error)

    def _on_end(self) -> None:
        """The engine is gone: nobody may wait for it any longer."""
        died = EngineUnavailable("the engine process ended; it is being restarted")
        self._settle_start(StartupError("the engine process ended while starting; see its log"))
        answers = (*self._versions.values(), *self._pins.values(), *self._stats, *self._tiers)
        for waiting in answers:
            _settle(waiting, died)
        for waits in (self._versions, self._pins, self._stats, self._tiers):
            waits.clear()
        for request_id, stream in self._streams.items():
            stream.put(_death_of(request_id))
        self._training.on_end(died)
        if self._state is EngineState.READY:
            logger.error("the engine died; restarting it")
            self._state = EngineState.RESTARTING
            self._restarting = asyncio.create_task(self._restart())

    async def _restart(self) -> None:
        pause = _FIRST_RESTART_SECONDS
        while self._state is EngineState.RESTARTING:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LAST_RESTART_SECONDS)
            try:
                await self._launch()
            except (StartupError, EngineUnavailable, OSError):
                logger.exception("the engine did not restart")
        self.num_restarts += 1
        await self._restore(self._pin, "pinned", self._pinned_versions)
        await self._restore(self.load_version, "loaded", self._kept_versions)

    async def _restore(
        self, bring: Callable[[str], Awaitable[None]], word: str, digests: Mapping[str, None]
    ) -> None:
        for digest in list(digests):
            try:
                await bring(digest)
            except (AdapterRejected, EngineUnavailable) as error:
                logger.warning("version %s was not %s again: %s", digest[:12], word, error)


def _settle(future: "asyncio.Future[Any]", outcome: object) -> None:
    if future.done():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _failure(event: TokenEvent) -> Exception:
    message = event.error or "the request failed"
    if event.error_code == EngineOverloaded.code:
        return EngineOverloaded(message)
    return RequestFailed(message, code=event.error_code or RequestFailed.code)


def _death_of(request_id: str) -> TokenEvent:
    return TokenEvent(
        request_id=request_id,
        finish_reason=FinishReason.ERROR,
        error="the engine process ended while the request ran; please repeat it",
        error_code="engine_died",
    )
