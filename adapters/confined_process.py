"""Runs a module of ours in a process that may hang, burst or die.

It is started by ``exec`` and never by a bare fork: the caller runs threads and an event loop. It
needs no network, and of the environment it gets the library path only. What it may use it limits
itself, with ``process_limits``, before it reads a byte of what strangers made.
"""

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Final

import multiflora

_INHERITED: Final = ("LD_LIBRARY_PATH",)
_MAX_ANSWER_BYTES: Final = 64 << 10


def program_of(module: str) -> str:
    """The program that runs ``main`` of a module, for ``run_confined``.

    `-I -S` leaves out the environment, the working directory and every .pth file; the caller's
    search path is handed over instead, so that both run the same code.
    """
    return (
        "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
        f"from {module} import main; main()"
    )


def run_confined(
    program: str, question: IO[bytes], complaint: IO[bytes], *, wall_seconds: float
) -> tuple[bytes, int]:
    """What the process writes, up to 64 KiB, and its exit status; negative for a signal.

    It reads ``question`` as its input and writes errors to ``complaint``; both are files, since a
    pipe to or from a process that hangs would block. It is gone when this returns or raises
    ``TimeoutError``.
    """
    deadline = time.monotonic() + wall_seconds
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", program, json.dumps(_search_path())],
        stdin=question,
        stdout=subprocess.PIPE,
        stderr=complaint,
        env={name: os.environ[name] for name in _INHERITED if name in os.environ},
        cwd="/",
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        with process.stdout as pipe:
            answer = _read(pipe.fileno(), deadline)
        return answer, process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    finally:
        process.kill()
        process.wait()


def _search_path() -> list[str]:
    """The caller's, then the place where it found this package, by whatever means it did."""
    root = Path(multiflora.__file__).parent.parent
    return [os.path.abspath(entry) for entry in sys.path] + [str(root)]


def _read(descriptor: int, deadline: float) -> bytes:
    """All that is written until the other end closes. Raises ``TimeoutError``."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    answer = b""
    while len(answer) <= _MAX_ANSWER_BYTES:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError
        chunk = os.read(descriptor, _MAX_ANSWER_BYTES)
        if not chunk:
            break
        answer += chunk
    return answer
