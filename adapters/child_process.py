"""Programs of this package in processes of their own that may hang, burst or die.

A process is started by ``exec`` and never by a bare fork: the caller runs threads and an event
loop. Of the environment it gets the library path only.
"""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import multiflora

# `-I -S` leaves out the environment, the working directory and every .pth file; the caller's search
# path is handed over instead, so that both run the same code.
SAME_PATH = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
_INHERITED = ("LD_LIBRARY_PATH",)
_MAX_ANSWER_BYTES = 256 << 10
# How often it is looked whether the answer is still wanted.
_LOOK_SECONDS = 0.2


def start_isolated(
    program: str, *, question: IO[bytes], complaint: IO[bytes]
) -> "subprocess.Popen[bytes]":
    """Run Python's ``program``, reading ``question`` and complaining to ``complaint``.

    Both are files: these never block their writer, as a pipe to or from a process that hangs would.
    What it writes to stdout is the caller's to read.
    """
    return subprocess.Popen(
        isolated_command(program),
        stdin=question,
        stdout=subprocess.PIPE,
        stderr=complaint,
        env=isolated_environment(),
        cwd="/",
        start_new_session=True,
    )


def isolated_command(program: str, *arguments: str) -> list[str]:
    """Arguments that run ``program``, which begins with ``SAME_PATH``; ``arguments`` follow."""
    search_path = json.dumps(_search_path())
    return [sys.executable, "-I", "-S", "-c", program, search_path, *arguments]


def isolated_environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _INHERITED if name in os.environ}


def answer_of(
    process: "subprocess.Popen[bytes]",
    *,
    wall_seconds: float,
    is_cancelled: Callable[[], bool] | None = None,
) -> tuple[bytes, int]:
    """What it writes, up to 256 KiB, and its exit status, which is negative for a signal.

    It is gone when this returns, or raises ``TimeoutError``, or ``InterruptedError`` because
    ``is_cancelled``.
    """
    deadline = time.monotonic() + wall_seconds
    assert process.stdout is not None
    try:
        with process.stdout as pipe:
            answer = _read(pipe.fileno(), deadline, is_cancelled)
        return answer, process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    finally:
        process.kill()
        process.wait()


def end_of(complaint: IO[bytes], max_bytes: int) -> str:
    """The last of what the process complained about, as one printable line."""
    complaint.seek(max(0, complaint.seek(0, os.SEEK_END) - max_bytes))
    return ascii(complaint.read().decode("utf-8", "backslashreplace"))


def _search_path() -> list[str]:
    """The caller's, then the place where it found this package, by whatever means it did."""
    root = Path(multiflora.__file__).parent.parent
    return [os.path.abspath(entry) for entry in sys.path] + [str(root)]


def _read(descriptor: int, deadline: float, is_cancelled: Callable[[], bool] | None) -> bytes:
    """All that is written until the other end closes."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    answer = b""
    while len(answer) <= _MAX_ANSWER_BYTES:
        left = max(0.0, deadline - time.monotonic())
        if not poll.poll(1000 * (min(left, _LOOK_SECONDS) if is_cancelled else left)):
            if is_cancelled and is_cancelled():
                raise InterruptedError
            if time.monotonic() >= deadline:
                raise TimeoutError
            continue
        chunk = os.read(descriptor, _MAX_ANSWER_BYTES)
        if not chunk:
            break
        answer += chunk
    return answer
