"""Checks the structure of an uploaded training file in a process of its own, which may die.

Only rows, fields and types: tokens need the base, and are looked at when a job is made.
"""

import json
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from multiflora.adapters.child_process import SAME_PATH, answer_of, start_isolated

from .problem import Problem, summary

_PROGRAM: Final = (
    SAME_PATH + "from multiflora.engine.training.data.check_process import main; main()"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckLimits:
    """What one check may cost; 512 MiB of rows take about 8 s of CPU time."""

    memory_bytes: int = 1 << 30
    cpu_seconds: int = 300
    wall_seconds: int = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class FileCheck:
    """What was found: the format of the first good row, the good rows, the first bad ones."""

    format: str | None = None
    num_rows: int = 0
    num_problems: int = 0
    problems: tuple[Problem, ...] = ()
    failure: str | None = None

    @property
    def complaint(self) -> str | None:
        """What is wrong with the file, with line numbers; None if nothing is."""
        if self.failure is not None:
            return self.failure
        if self.num_problems:
            return summary(self.problems, self.num_problems)
        return None if self.num_rows else "the file has no rows"


def check_file(
    path: Path,
    limits: CheckLimits | None = None,
    *,
    is_cancelled: Callable[[], bool] | None = None,
) -> FileCheck:
    """Read all of the file, at low priority. Blocks for up to ``limits.wall_seconds``.

    A check that dies or takes too long is a failure of the file. Raises ``OSError`` if no process
    can be started, and ``InterruptedError`` soon after ``is_cancelled`` says so.
    """
    limits = limits or CheckLimits()
    request = {"path": str(path.absolute()), "limits": msgspec.to_builtins(limits)}
    with tempfile.TemporaryFile() as question, tempfile.TemporaryFile() as complaint:
        question.write(json.dumps(request).encode())
        question.seek(0)
        try:
            process = start_isolated(_PROGRAM, question=question, complaint=complaint)
            answer, status = answer_of(
                process, wall_seconds=limits.wall_seconds, is_cancelled=is_cancelled
            )
        except TimeoutError:
            return FileCheck(failure=f"checking took over {limits.wall_seconds} s; split the file")
    if status != 0:
        return FileCheck(failure=_death(status, limits))
    try:
        return msgspec.json.decode(answer, type=FileCheck)
    except msgspec.MsgspecError:
        return FileCheck(failure="the check gave no answer; upload the file again")


def _death(status: int, limits: CheckLimits) -> str:
    if -status in (signal.SIGXCPU, signal.SIGALRM):
        return f"checking took over {limits.cpu_seconds} s of CPU time; split the file"
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return f"the check ended with {how}; the machine may be out of memory, so upload it again"
