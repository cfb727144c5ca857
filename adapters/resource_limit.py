"""What a process gives up before it reads what strangers made."""

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


def restrict_process(limits: ProcessLimits) -> None:
    """Limit this process for good; it can have no child, no thread and no core dump any more."""
    restrict_resources(memory_bytes=limits.memory_bytes, file_bytes=limits.file_bytes)
    # Above the soft limit comes SIGXCPU, which tells the parent the reason; SIGKILL would not.
    lower_limit(resource.RLIMIT_CPU, limits.cpu_seconds, limits.cpu_seconds + 1)
    # The parent kills at wall_seconds; this is for the case that the parent is gone.
    signal.alarm(limits.wall_seconds + 1)


def restrict_resources(*, memory_bytes: int, file_bytes: int) -> None:
    """As ``restrict_process`` does, without an end: for processes that live on."""
    for kind, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, _MAX_OPEN_FILES),
        (resource.RLIMIT_NPROC, 0),
        # A dump would be a tenant's data on the disk.
        (resource.RLIMIT_CORE, 0),
    ):
        lower_limit(kind, value, value)


def lower_limit(kind: int, soft: int, hard: int) -> None:
    """Lower a resource limit of this process for good; one that is lower already stays."""
    _, ceiling = resource.getrlimit(kind)
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), min(hard, ceiling)
    resource.setrlimit(kind, (soft, hard))
