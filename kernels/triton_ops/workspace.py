"""Scratch memory that launches on one stream share: each is done with it before the next begins."""

import torch
from torch import Tensor


class Workspace:
    """Buffers by name that only ever grow.

    A captured graph keeps the addresses it saw, so what a larger buffer replaces stays alive.
    Sizes double, so that all that was ever replaced is no larger than what is in use.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[str, Tensor] = {}
        self._replaced: list[Tensor] = []

    def get(self, name: str, size: int, dtype: torch.dtype) -> Tensor:
        """At least ``size`` elements; contents are whatever the last user left."""
        buffer = self._buffers.get(name)
        if buffer is not None and buffer.dtype == dtype and buffer.numel() >= size:
            return buffer
        if buffer is not None:
            self._replaced.append(buffer)
            size = max(size, 2 * buffer.numel())
        # Zeros: arrival counters start there and every launch leaves them there.
        buffer = torch.zeros(size, dtype=dtype, device=self._device)
        self._buffers[name] = buffer
        return buffer

    @property
    def num_bytes(self) -> int:
        held = (*self._buffers.values(), *self._replaced)
        return sum(buffer.numel() * buffer.element_size() for buffer in held)
