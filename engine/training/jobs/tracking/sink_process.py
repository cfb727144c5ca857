"""One sink of one job, from the server's side: a queue that never waits, a thread, a process.

thread --Message per line--> tracking_process (the sink's library, the network)
"""

import logging
import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Final

import msgspec

from .message import Ended, Message, TrackedRun

logger = logging.getLogger(__name__)

_PROGRAM: Final = ("-m", "multiflora.engine.training.jobs.tracking.tracking_process")
_MAX_WAITING: Final = 4096
_MAX_LOG_BYTES: Final = 16 << 10
_PATIENCE_SECONDS: Final = 120.0


class SinkFailed(Exception):
    """Why the sink gets nothing any more."""


class SinkProcess:
    """Starts at once. ``put`` and ``close`` never wait and never raise.

    A process that fails, or takes nothing for ``patience_seconds``, is killed; ``on_failure`` is
    then called once, in the thread, with the reason.
    """

    def __init__(
        self,
        run: TrackedRun,
        *,
        on_failure: Callable[[str], None],
        patience_seconds: float = _PATIENCE_SECONDS,
        program: tuple[str, ...] = _PROGRAM,
    ) -> None:
        self._run = run
        self._on_failure = on_failure
        self._patience = patience_seconds
        self._program = program
        self._waiting: queue.Queue[Message | None] = queue.Queue(_MAX_WAITING)
        self._is_closed = threading.Event()
        self._end: Ended | None = None
        self._thread = threading.Thread(target=self._live, daemon=True, name=f"sink-{run.sink}")
        self._thread.start()

    def put(self, message: Message) -> None:
        """What a full queue cannot take is lost to this sink: the job's own files have it."""
        if not self._is_closed.is_set():
            with suppress(queue.Full):
                self._waiting.put_nowait(message)

    def close(self, succeeded: bool | None) -> None:
        """Let the process finish by itself; None leaves the run open for another process.

        Only the first call counts.
        """
        if succeeded is not None and not self._is_closed.is_set():
            self._end = Ended(succeeded)
        self._is_closed.set()
        with suppress(queue.Full):
            self._waiting.put_nowait(None)

    def wait(self, seconds: float | None = None) -> None:
        """Until the process is gone, after ``close``."""
        self._thread.join(seconds)

    def _live(self) -> None:
        try:
            with tempfile.TemporaryFile() as log:
                self._talk(log)
        except (SinkFailed, OSError) as error:
            self._is_closed.set()
            logger.warning("%s gets no metrics of %s: %s", self._run.sink, self._run.id, error)
            self._on_failure(str(error))

    def _talk(self, log: IO[bytes]) -> None:
        process = subprocess.Popen(
            [sys.executable, *self._program],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            # A library's own processes end with it.
            start_new_session=True,
        )
        assert process.stdin is not None
        try:
            with suppress(BrokenPipeError), process.stdin as pipe:
                os.set_blocking(pipe.fileno(), False)
                self._write(pipe.fileno(), self._run)
                while (message := self._next()) is not None:
                    self._write(pipe.fileno(), message)
                if self._end is not None:
                    self._write(pipe.fileno(), self._end)
            status = process.wait(self._patience)
        except subprocess.TimeoutExpired:
            raise SinkFailed(f"it was not done after {self._patience:g} s") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if status != 0:
            raise SinkFailed(_last_line(log) or f"its process ended with status {status}")

    def _next(self) -> Message | None:
        """The next message; None once it is closed and all were taken."""
        while not (self._is_closed.is_set() and self._waiting.empty()):
            with suppress(queue.Empty):
                return self._waiting.get(timeout=1.0)
        return None

    def _write(self, pipe: int, message: Message) -> None:
        """Raises ``BrokenPipeError`` and ``SinkFailed``."""
        left = memoryview(msgspec.json.encode(message) + b"\n")
        deadline = time.monotonic() + self._patience
        poll = select.poll()
        poll.register(pipe, select.POLLOUT)
        while left:
            if not poll.poll(1000 * max(0.0, deadline - time.monotonic())):
                raise SinkFailed(f"it took nothing for {self._patience:g} s")
            with suppress(BlockingIOError):
                left = left[os.write(pipe, left) :]


def _last_line(log: IO[bytes]) -> str:
    log.seek(max(0, log.seek(0, os.SEEK_END) - _MAX_LOG_BYTES))
    lines = log.read().decode("utf-8", "replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
