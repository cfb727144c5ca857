"""What the engine's process and its device use right now."""

import psutil
import torch

from .memory_plan import available_memory
from .request import MachineStats


class Machine:
    """Measured by the process that asks."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._process = psutil.Process()
        # On a CPU: what this process may use, whoever else uses some of it.
        self._total_bytes = psutil.virtual_memory().total

    def stats(self) -> MachineStats:
        free, total = self._device_memory()
        with self._process.oneshot():
            times = self._process.cpu_times()
            return MachineStats(
                cpu_seconds=times.user + times.system,
                resident_bytes=self._process.memory_info().rss,
                num_threads=self._process.num_threads(),
                device_bytes_used=total - free,
                device_bytes_total=total,
            )

    def _device_memory(self) -> tuple[int, int]:
        """Free and total bytes."""
        if self._device.type == "cuda":
            return torch.cuda.mem_get_info(self._device)
        return min(available_memory(), self._total_bytes), self._total_bytes
