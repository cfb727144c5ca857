"""The process in which one merge runs: request on stdin, messages on stdout, then it ends.

It lowers its limits before it loads torch or reads a byte of a parent, and makes way for serving.
"""

import errno
import os
import resource
import signal
import sys

import msgspec

from ..error import AdapterRejected
from ..resource_limit import lower_limit
from .process_message import Done, Failed, MergeLimits, MergeRequest, Message, Progress, Refused

_MAX_OPEN_FILES = 256
_NICENESS = 10
# A message per module of a large base would say little more.
_MIN_STEP = 0.01


def main() -> None:
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=MergeRequest)
    restrict(request.limits)
    _say(_answer(request))


def restrict(limits: MergeLimits) -> None:
    """Lower what this process may use, for good."""
    for kind, value in (
        # Not the address space: libraries for devices reserve far more than they use.
        (resource.RLIMIT_DATA, limits.memory_bytes),
        (resource.RLIMIT_FSIZE, limits.max_bytes),
        (resource.RLIMIT_NOFILE, _MAX_OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        lower_limit(kind, value, value)
    # Above the soft limit comes SIGXCPU, which tells the parent the reason; SIGKILL would not.
    lower_limit(resource.RLIMIT_CPU, limits.cpu_seconds, limits.cpu_seconds + 1)
    # The parent kills at wall_seconds; this is for the case that the parent is gone.
    signal.alarm(limits.wall_seconds + 1)
    os.nice(_NICENESS)
    os.environ["OMP_NUM_THREADS"] = str(limits.num_threads)


def _answer(request: MergeRequest) -> Message:
    try:
        return _merge(request)
    except AdapterRejected as error:
        return Refused(error.code, str(error))
    except ValueError as error:
        return Refused("invalid_merge", str(error))
    except OSError as error:
        if error.errno == errno.EFBIG:
            return Refused(
                "adapter_too_large",
                f"the result is over {request.limits.max_bytes} bytes; choose a smaller rank",
            )
        return Failed(error.errno or errno.EIO, error.strerror or str(error))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        return Refused(
            "merge_out_of_memory",
            f"the merge needs over {request.limits.memory_bytes} bytes of memory; use fewer "
            "parents, a smaller rank, or a method that is not element-wise",
        )


def _merge(request: MergeRequest) -> Done:
    # Imported late: torch is to be loaded within the limits.
    from pathlib import Path

    from .merge import merge_folders

    merged = merge_folders(
        [Path(folder) for folder in request.folders],
        request.recipe,
        names=request.names,
        on_progress=_Teller(),
    )
    merged.write(Path(request.out))
    return Done(merged.report.to_json(), merged.report.provenance())


class _Teller:
    """Passes progress on in steps that are worth a message."""

    def __init__(self) -> None:
        self._told = 0.0

    def __call__(self, share: float) -> None:
        if share - self._told >= _MIN_STEP:
            self._told = share
            _say(Progress(share))


def _say(message: Message) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()
