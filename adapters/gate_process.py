"""The process in which one adapter is checked: request on stdin, verdict on stdout, then it ends.

It gives up every resource it does not need before it reads a byte of the adapter. The messages are
those of ``gate_message``, in plain json: importing msgspec would double the start.
"""

import errno
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .archive import ArchiveLimits
from .error import AdapterRejected
from .inspection import CheckedAdapter, GateLimits, inspect_source
from .resource_limit import ProcessLimits, restrict_process
from .target import Projection, TargetModule


def main() -> None:
    request = json.load(sys.stdin)
    archive = ArchiveLimits(**request["limits"].pop("archive"))
    limits = GateLimits(**request["limits"], archive=archive)
    restrict(limits)
    os.write(sys.stdout.fileno(), json.dumps(_verdict(request, limits)).encode())


def restrict(limits: GateLimits) -> None:
    """Lower what this process may use, for good."""
    restrict_process(
        ProcessLimits(
            memory_bytes=limits.memory_bytes,
            file_bytes=max(limits.max_bytes, limits.archive.max_unpacked_bytes),
            cpu_seconds=limits.cpu_seconds,
            wall_seconds=limits.wall_seconds,
        )
    )


def _verdict(request: Mapping[str, Any], limits: GateLimits) -> Mapping[str, Any]:
    try:
        return {"type": "Accepted", "checked": asdict(_inspect(request, limits))}
    except AdapterRejected as error:
        return {"type": "Refused", "code": error.code, "message": str(error)}
    except MemoryError:
        return {
            "type": "Refused",
            "code": "check_out_of_memory",
            "message": f"checking the adapter needs over {limits.memory_bytes} bytes of memory; "
            "use a smaller adapter, or raise memory_bytes",
        }
    except OSError as error:
        return {
            "type": "Failed",
            "number": error.errno or errno.EIO,
            "reason": error.strerror or str(error),
        }


def _inspect(request: Mapping[str, Any], limits: GateLimits) -> CheckedAdapter:
    return inspect_source(
        Path(request["source"]),
        Path(request["staged"]),
        projections=[_projection(**fields) for fields in request["projections"]],
        limits=limits,
        with_template=request["with_template"],
    )


def _projection(layer: int, kind: str, slices: list[dict[str, Any]]) -> Projection:
    return Projection(layer, kind, tuple(TargetModule(**part) for part in slices))
