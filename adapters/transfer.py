"""The way of a flat buffer from host memory to the device."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Arrival:
    """A buffer on the device, complete once ``done`` has happened; None is at once."""

    buffer: Tensor
    done: "torch.cuda.Event | None" = None

    def is_complete(self) -> bool:
        return self.done is None or self.done.query()


class Transfer(Protocol):
    """``shares_memory`` if the device reads host memory, so that nothing is copied."""

    shares_memory: bool

    def start(self, buffer: Tensor) -> Arrival:
        """Begin; never waits. ``buffer`` stays as it is until the arrival is complete."""
        ...


class SharedTransfer:
    """For a device that is the host."""

    shares_memory = True

    def start(self, buffer: Tensor) -> Arrival:
        return Arrival(buffer)


class StreamTransfer:
    """For CUDA: copies from pinned memory on a stream of its own, beside the running step."""

    shares_memory = False

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def start(self, buffer: Tensor) -> Arrival:
        compute = torch.cuda.current_stream(self._device)
        # Allocated for the stream that will read it; its memory may have been an evicted version's,
        # which kernels under way still read.
        arriving = torch.empty_like(buffer, device=self._device, pin_memory=False)
        self._stream.wait_stream(compute)
        with torch.cuda.stream(self._stream):
            arriving.copy_(buffer, non_blocking=True)
            done = torch.cuda.Event()
            done.record(self._stream)
        return Arrival(arriving, done)


def make_transfer(device: torch.device) -> SharedTransfer | StreamTransfer:
    return StreamTransfer(device) if device.type == "cuda" else SharedTransfer()
