"""Two ways to an engine: a process of its own, or a thread of this one."""

import asyncio
import contextlib
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import Protocol

import msgspec

from .config import EngineConfig
from .errors import EngineUnavailable, StartupError
from .frame import pack_frame, receive_frame
from .messages import Command, Configure, Ready, Report, Shutdown, StartFailed

logger = logging.getLogger(__name__)

_STOP_SECONDS = 10
_REAP_SECONDS = 2


def engine_environment() -> dict[str, str]:
    """What an engine's process is started with: its libraries read it when they are loaded."""
    return {
        # OpenMP's workers, torch's, sleep when they have nothing to do. They would otherwise spin
        # for milliseconds on the processors that the compiled core's own threads compute on.
        "OMP_WAIT_POLICY": "passive",
        **os.environ,
        "TRITON_DEFAULT_FP_FUSION": "1",
    }


class Transport(Protocol):
    """Carries commands to one engine and its reports back, on the event loop's thread."""

    async def start(self, on_report: Callable[[Report], None], on_end: Callable[[], None]) -> None:
        """Start an engine; ``on_end`` is called once when it is gone, for whatever reason."""
        ...

    def send(self, command: Command) -> None:
        """Raises ``EngineUnavailable`` if there is no engine."""
        ...

    def kill(self) -> None:
        """End the engine without asking it; ``on_end`` follows."""
        ...

    async def stop(self) -> None: ...


class ProcessTransport:
    """The engine in a child process, which owns the device; survives its death."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Report)
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The engine's process id while it runs."""
        return self._process.pid if self._process else None

    async def start(self, on_report: Callable[[Report], None], on_end: Callable[[], None]) -> None:
        if self._reading:
            # A predecessor reports its end before its successor begins.
            await asyncio.wait([self._reading])
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "multiflora.engine.process",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                env=engine_environment(),
            )
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._reading = asyncio.create_task(self._read(reader, on_report, on_end))
        self.send(Configure(self._config))

    async def _read(
        self,
        reader: asyncio.StreamReader,
        on_report: Callable[[Report], None],
        on_end: Callable[[], None],
    ) -> None:
        try:
            while frame := await receive_frame(reader):
                on_report(self._decoder.decode(frame))
        finally:
            await self._reap()
            on_end()

    async def _reap(self) -> None:
        writer, self._writer = self._writer, None
        if writer:
            writer.close()
        process, self._process = self._process, None
        if process:
            # Its socket is closed, so it is on its way out; one that is not gets no choice.
            try:
                code = await asyncio.wait_for(process.wait(), _REAP_SECONDS)
            except TimeoutError:
                process.kill()
                code = await process.wait()
            logger.info("engine process %d ended with %d", process.pid, code)

    def send(self, command: Command) -> None:
        if self._writer is None or self._writer.is_closing():
            raise EngineUnavailable("the engine is not running")
        self._writer.write(pack_frame(self._encoder.encode(command)))

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    async def stop(self) -> None:
        if self._process is None or self._reading is None:
            return
        with contextlib.suppress(EngineUnavailable):
            self.send(Shutdown())
        _, pending = await asyncio.wait([self._reading], timeout=_STOP_SECONDS)
        if pending and self._process:
            self._process.kill()
            await asyncio.wait(pending)


class ThreadTransport:
    """The engine in a thread of this process, for tests and offline use."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._inbox: Callable[[Command], None] | None = None
        self._is_stopped = False

    async def start(self, on_report: Callable[[Report], None], on_end: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, args=(on_report, on_end), daemon=True)
        self._thread.start()

    def _run(self, on_report: Callable[[Report], None], on_end: Callable[[], None]) -> None:
        from .assembly import build_engine

        def report(message: Report) -> None:
            self._on_event_loop(on_report, message)

        try:
            engine = build_engine(self._config, report)
        except StartupError as error:
            report(StartFailed(error.code, str(error)))
        else:
            self._inbox = engine.inbox.put
            report(Ready(engine.info))
            if self._is_stopped:
                engine.inbox.put(Shutdown())
            engine.run()
        finally:
            self._inbox = None
            self._on_event_loop(on_end)

    def _on_event_loop(self, function: Callable[..., None], *arguments: object) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the event loop was closed first
            self._loop.call_soon_threadsafe(function, *arguments)

    def send(self, command: Command) -> None:
        inbox = self._inbox
        if inbox is None:
            raise EngineUnavailable("the engine is not running")
        inbox(command)

    def kill(self) -> None:
        """A thread cannot be ended from outside."""
        logger.error("the engine's thread is stuck; only a process of its own could be ended")

    async def stop(self) -> None:
        if self._thread is None:
            return
        self._is_stopped = True
        with contextlib.suppress(EngineUnavailable):
            self.send(Shutdown())
        await asyncio.to_thread(self._thread.join, _STOP_SECONDS)
