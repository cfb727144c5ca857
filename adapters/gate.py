"""The gate for files that strangers made: checked in a process that may hang, burst or die.

    server thread --CheckRequest--> gate_process (no torch, no secrets, hard limits)
                  <----Verdict----    reads the source, writes `staged`, ends

A process is started per check.
"""

import logging
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import msgspec

from .child_process import SAME_PATH, answer_of, end_of, start_isolated
from .error import AdapterRejected
from .gate_message import Accepted, CheckRequest, Failed, Refused, Verdict
from .inspection import CheckedAdapter, GateLimits
from .target import Projection

logger = logging.getLogger(__name__)

_PROGRAM = SAME_PATH + "from multiflora.adapters.gate_process import main; main()"
_MAX_LOG_BYTES = 4 << 10


def check_adapter(
    source: Path,
    staged: Path,
    *,
    projections: Sequence[Projection],
    limits: GateLimits | None = None,
    with_template: bool = False,
) -> CheckedAdapter:
    """Check the PEFT folder or archive at ``source``; its two files are then in ``staged``.

    So is its chat template ``with_template``.

    ``staged`` is an existing, empty folder that nobody else writes. Blocks for up to
    ``limits.wall_seconds``. Raises ``AdapterRejected`` with the reason, or ``check_timeout``,
    ``check_out_of_memory`` or ``check_died`` for an adapter that exhausts or kills its check;
    ``OSError`` for a fault of the disk. What is in ``staged`` after an error is worthless.
    """
    limits = limits or GateLimits()
    request = CheckRequest(
        str(source.absolute()), str(staged.absolute()), tuple(projections), limits, with_template
    )
    with tempfile.TemporaryFile() as question, tempfile.TemporaryFile() as complaint:
        question.write(msgspec.json.encode(request))
        question.seek(0)
        answer, status = _run(question, complaint, limits)
        if status != 0:
            _log(complaint, status)
            raise _died(status, limits)
    return _checked(answer, source)


def _run(question: IO[bytes], complaint: IO[bytes], limits: GateLimits) -> tuple[bytes, int]:
    """The process's answer and exit status; it is gone afterwards, whatever happened."""
    process = start_isolated(_PROGRAM, question=question, complaint=complaint)
    try:
        return answer_of(process, wall_seconds=limits.wall_seconds)
    except TimeoutError:
        raise AdapterRejected(
            "check_timeout",
            f"checking the adapter took over {limits.wall_seconds} s; use a smaller adapter, or "
            "raise wall_seconds",
        ) from None


def _checked(answer: bytes, source: Path) -> CheckedAdapter:
    try:
        verdict: Verdict = msgspec.json.decode(answer, type=Verdict)
    except msgspec.MsgspecError:
        raise AdapterRejected("check_died", "the check of the adapter gave no answer") from None
    match verdict:
        case Accepted(checked):
            return checked
        case Refused(code, message):
            raise AdapterRejected(code, message)
        case Failed(number, reason):
            raise OSError(number, reason, str(source))


def _died(status: int, limits: GateLimits) -> AdapterRejected:
    if -status in (signal.SIGXCPU, signal.SIGALRM):
        return AdapterRejected(
            "check_timeout",
            f"checking the adapter took over {limits.cpu_seconds} s of CPU time; look for a "
            "pattern in its config that backtracks, or raise cpu_seconds",
        )
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return AdapterRejected(
        "check_died",
        f"the check of the adapter ended with {how}; the adapter is damaged, or the machine is out "
        "of memory",
    )


def _log(complaint: IO[bytes], status: int) -> None:
    text = end_of(complaint, _MAX_LOG_BYTES)
    logger.warning("the check of an adapter ended with status %d: %s", status, text)
