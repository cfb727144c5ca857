"""A merge in a process that may hang, burst or die; its caller needs no torch.

server thread --MergeRequest--> merge_process (torch, lower priority, hard limits)
              <---Message...---   reads the parents, writes `out`, ends
"""

import logging
import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Final

import msgspec

from ..child_process import SAME_PATH, end_of, start_isolated
from ..error import AdapterRejected
from .process_message import Done, Failed, MergeLimits, MergeRequest, Message, Progress, Refused

logger = logging.getLogger(__name__)

PROGRAM: Final = SAME_PATH + "from multiflora.adapters.merging.merge_process import main; main()"
_CHUNK_BYTES: Final = 1 << 16
_MAX_LINE_BYTES: Final = 64 << 20
_MAX_LOG_BYTES: Final = 4 << 10


class MergeChild:
    """One merge. ``run`` blocks; ``kill`` ends it from any other thread."""

    def __init__(self, request: MergeRequest) -> None:
        self._request = request
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_killed = False

    def run(self, on_progress: Callable[[float], None]) -> Done:
        """What the merge reports; its folder is then at ``request.out``.

        Raises ``AdapterRejected`` with the reason, or ``merge_timeout``, ``merge_out_of_memory`` or
        ``merge_died`` for a merge that exhausts or loses its process; ``OSError`` for a fault of
        the disk. What is at ``request.out`` after an error is worthless.
        """
        answer: Message | None = None
        with tempfile.TemporaryFile() as question, tempfile.TemporaryFile() as complaint:
            question.write(msgspec.json.encode(self._request))
            question.seek(0)
            process = self._start(question, complaint)
            try:
                for message in self._messages(process):
                    answer = message
                    if isinstance(message, Progress):
                        on_progress(message.share)
                status = process.wait(self._request.limits.wall_seconds)
            except subprocess.TimeoutExpired:
                raise _timeout(self._request.limits) from None
            finally:
                self.kill()
                process.wait()
            if status != 0:
                text = end_of(complaint, _MAX_LOG_BYTES)
                logger.warning("a merge ended with status %d: %s", status, text)
                raise _died(status, self._request.limits)
        return _done(answer)

    def kill(self) -> None:
        """End the process if it runs, and never start it if it does not."""
        with self._lock:
            self._is_killed = True
            if self._process is not None:
                self._process.kill()

    def _start(self, question: IO[bytes], complaint: IO[bytes]) -> "subprocess.Popen[bytes]":
        with self._lock:
            if self._is_killed:
                raise AdapterRejected("merge_died", "the merge was ended before it began")
            self._process = start_isolated(PROGRAM, question=question, complaint=complaint)
            return self._process

    def _messages(self, process: "subprocess.Popen[bytes]") -> Iterator[Message]:
        deadline = time.monotonic() + self._request.limits.wall_seconds
        assert process.stdout is not None
        with process.stdout as pipe:
            for line in _lines(pipe.fileno(), deadline, self._request.limits):
                try:
                    yield msgspec.json.decode(line, type=Message)
                except msgspec.MsgspecError:
                    raise _no_answer() from None


def _lines(descriptor: int, deadline: float, limits: MergeLimits) -> Iterator[bytes]:
    """What is written, line by line, until the other end closes."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    held = b""
    while True:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise _timeout(limits)
        chunk = os.read(descriptor, _CHUNK_BYTES)
        if not chunk:
            return
        *lines, held = (held + chunk).split(b"\n")
        if len(held) > _MAX_LINE_BYTES:
            raise _no_answer()
        yield from lines


def _done(answer: Message | None) -> Done:
    match answer:
        case Done():
            return answer
        case Refused(code, message):
            raise AdapterRejected(code, message)
        case Failed(number, reason):
            raise OSError(number, reason)
    raise _no_answer()


def _no_answer() -> AdapterRejected:
    return AdapterRejected("merge_died", "the merge gave no answer that makes sense")


def _timeout(limits: MergeLimits) -> AdapterRejected:
    return AdapterRejected(
        "merge_timeout",
        f"the merge took over {limits.wall_seconds} s, or {limits.cpu_seconds} s of CPU time; use "
        "fewer parents or a faster method, or merge with the command line",
    )


def _died(status: int, limits: MergeLimits) -> AdapterRejected:
    if -status in (signal.SIGXCPU, signal.SIGALRM):
        return _timeout(limits)
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return AdapterRejected(
        "merge_died", f"the merge ended with {how}; the machine may be out of memory"
    )
