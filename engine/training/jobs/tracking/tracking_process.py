"""The process of one sink: messages on stdin until it ends; its exit status says how it went.

Run as ``python -m multiflora.engine.training.jobs.tracking.tracking_process``.
"""

import os
import signal
import sys
from typing import IO, Final

import msgspec

from .message import Begun, Ended, Measured, Message, TrackedRun
from .sink import open_sink

# Serving comes first.
_NICENESS: Final = 10
# For the case that nobody is left who would end a library that hangs.
_LAST_SECONDS: Final = 300
_MAX_REASON_CHARS: Final = 300


def main() -> None:
    os.nice(_NICENESS)
    try:
        _follow(sys.stdin.buffer)
    except Exception as error:  # the process's outer edge
        text = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"\n{text[:_MAX_REASON_CHARS]}", file=sys.stderr, flush=True)
        # Without the exit handlers of a library that has just failed.
        os._exit(1)


def _follow(stream: IO[bytes]) -> None:
    decoder = msgspec.json.Decoder(Message)
    run = decoder.decode(stream.readline())
    assert isinstance(run, TrackedRun)
    sink, succeeded = open_sink(run), False
    for line in stream:
        match decoder.decode(line):
            case Begun(step):
                sink.begin(step)
            case Measured(step, values):
                sink.add(step, values)
            case Ended(succeeded):
                break
            case TrackedRun():
                raise ValueError("a process has one run")
    signal.alarm(_LAST_SECONDS)
    sink.close(succeeded=succeeded)


if __name__ == "__main__":
    main()
