"""Seconds, losses and memory of training steps, the same for whoever trains."""

import time
from pathlib import Path
from typing import Any

from .ragged_rows import Work


class StepMeter:
    """Counts from where it is made, with the base loaded; ``step`` at the end of each."""

    def __init__(self) -> None:
        self._base_bytes = resident_bytes("VmRSS")
        # The kernel's own way to forget the peak of loading (proc_pid_clear_refs(5)).
        Path("/proc/self/clear_refs").write_text("5")
        self._last = time.perf_counter()
        self._steps: list[tuple[float, float]] = []

    def step(self, loss: float) -> None:
        now = time.perf_counter()
        self._steps.append((now - self._last, loss))
        self._last = now

    def figures(self, work: Work) -> dict[str, Any]:
        """Speed of all but the warm-up, in tokens that are no padding."""
        peak = resident_bytes("VmHWM")
        rows = work.rows()[work.warmup * work.rows_per_step :]
        seconds = [seconds for seconds, _ in self._steps[work.warmup :]]
        return {
            "tokens_per_second": round(sum(len(row.ids) for row in rows) / sum(seconds), 1),
            "step_seconds": [round(value, 2) for value in seconds],
            "peak_mib": round(peak / 2**20),
            "peak_above_base_mib": round((peak - self._base_bytes) / 2**20),
            "losses": [loss for _, loss in self._steps],
        }


def resident_bytes(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{field}:")]
    return 1024 * int(line.split()[1])
