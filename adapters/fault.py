"""Numbered crash points: a test names one, and the process dies exactly there.

The points of an operation are numbered in the order in which it passes them.
"""

import os
import signal
from typing import Final

VARIABLE: Final = "MULTIFLORA_FAULT"
_CHANGES: Final = (
    *("publish", "point", "rollback", "retire", "delete"),
    *("pin", "unpin", "set_canary", "clear_canary", "promote"),
)
# A change: begun, stated, committed, visible.
_NUM_POINTS: Final = {"put": 6, **dict.fromkeys(_CHANGES, 4), "collect": 7}
POINTS: Final = tuple(
    f"{operation}.{number}"
    for operation, count in _NUM_POINTS.items()
    for number in range(1, count + 1)
)


def reach(point: str) -> None:
    """Kill this process, as a power cut would, if ``MULTIFLORA_FAULT`` is ``point``."""
    assert point in POINTS, point
    if os.environ.get(VARIABLE) == point:
        os.kill(os.getpid(), signal.SIGKILL)
