"""Carrying a step's integers to the device."""

from collections.abc import Sequence

import torch
from torch import Tensor

# Elements; 128 bytes of int32, so that every tensor starts on a cache line of its own.
_ALIGNMENT = 32


class StagingOverflow(Exception):
    """A step holds more integers than a static staging has room for; run it uncaptured."""


class DirectStaging:
    """Makes every tensor at once: for backends that plan and run on the host, and for checks."""

    is_static = False

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.int64) -> None:
        self.device = device
        self._dtype = dtype

    def begin(self) -> None:
        """Nothing is shared between steps."""

    def place(self, values: Sequence[int], *, capacity: int | None = None) -> Tensor:
        return torch.tensor(values, dtype=self._dtype).to(self.device)

    def commit(self) -> None:
        """Nothing waits to be copied."""


class PackedStaging:
    """All integers of a step in one int32 buffer and one copy to the device.

    ``begin`` starts a step, ``place`` hands out places, ``commit`` copies what was placed. A static
    staging gives the calls of every step the same places, so that a captured graph can be
    replayed; what varies most in length is best placed last, as no more than its values is copied.
    """

    def __init__(self, device: torch.device, capacity: int, *, is_static: bool) -> None:
        self.device = device
        self.is_static = is_static
        pinned = device.type == "cuda"
        self._host = torch.zeros(capacity, dtype=torch.int32, pin_memory=pinned)
        self._device = self._host.to(device) if pinned else torch.zeros_like(self._host)
        self._values = self._host.numpy()
        self._used = self._filled = 0
        self._copied = torch.cuda.Event() if pinned else None

    def begin(self) -> None:
        """Start over. Waits until the copy of the step before has left the host buffer."""
        if self._copied is not None:
            self._copied.synchronize()
        self._used = self._filled = 0

    def place(self, values: Sequence[int], *, capacity: int | None = None) -> Tensor:
        """Raises ``StagingOverflow`` if the values or all places together do not fit."""
        size = len(values) if capacity is None else capacity
        start, stop = self._used, self._used + size
        if len(values) > size or stop > self._host.numel():
            raise StagingOverflow(
                f"{len(values)} integers at {start} do not fit {size} of {self._host.numel()}"
            )
        self._values[start : start + len(values)] = values
        self._filled = start + len(values)
        self._used = -(-stop // _ALIGNMENT) * _ALIGNMENT
        return self._device[start:stop]

    def commit(self) -> None:
        """Copy the step's integers; kernels launched from here on see them."""
        self._device[: self._filled].copy_(self._host[: self._filled], non_blocking=True)
        if self._copied is not None:
            self._copied.record()
