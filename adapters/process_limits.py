"""What a process may use, lowered by itself and for good."""

import resource
import signal
from dataclasses import dataclass
from typing import Final

_MAX_OPEN_FILES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessLimits:
    """``memory_bytes`` is address space; no file that is written grows beyond ``file_bytes``."""

    memory_bytes: int
    file_bytes: int
    cpu_seconds: int
    wall_seconds: int


def restrict(limits: ProcessLimits) -> None:
    """Limit this process; it can have no child, no thread and no core dump any more."""
    for kind, value in (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_NOFILE, _MAX_OPEN_FILES),
        (resource.RLIMIT_NPROC, 0),
        # A dump would be a tenant's data on the disk.
        (resource.RLIMIT_CORE, 0),
    ):
        _lower(kind, value, value)
    # Above the soft limit comes SIGXCPU, which tells the parent the reason; SIGKILL would not.
    _lower(resource.RLIMIT_CPU, limits.cpu_seconds, limits.cpu_seconds + 1)
    # The parent kills at wall_seconds; this is for the case that the parent is gone.
    signal.alarm(limits.wall_seconds + 1)


def _lower(kind: int, soft: int, hard: int) -> None:
    _, ceiling = resource.getrlimit(kind)
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), min(hard, ceiling)
    resource.setrlimit(kind, (soft, hard))
