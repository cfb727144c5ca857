"""The way of a flat buffer from host memory to the device."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from multiflora.kernels.single_thread import compute_alone


class Completion(Protocol):
    """Something that happens once; a CUDA event is one."""

    def query(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Arrival:
    """A buffer on the device, complete once ``done`` has happened; None is at once."""

    buffer: Tensor
    done: Completion | None = None

    def is_complete(self) -> bool:
        return self.done is None or self.done.query()


class Transfer(Protocol):
    """``shares_memory`` if the device reads host memory, so that nothing is copied."""

    shares_memory: bool

    def start(self, buffer: Tensor, *, into: Tensor | None = None) -> Arrival:
        """Begin; never waits. ``buffer`` stays as it is until the arrival is complete.

        ``into`` is borrowed memory of the same size, which is always copied to.
        """
        ...


class SharedTransfer:
    """For a device that is the host. Copies into borrowed memory run in a thread."""

    shares_memory = True

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix="adapter-copy", initializer=compute_alone
        )

    def start(self, buffer: Tensor, *, into: Tensor | None = None) -> Arrival:
        if into is None:
            return Arrival(buffer)
        return Arrival(into, _Copy(self._thread.submit(into.copy_, buffer)))


class _Copy:
    """A copy in a thread."""

    def __init__(self, future: "Future[Tensor]") -> None:
        self._future = future

    def query(self) -> bool:
        if self._future.done():
            self._future.result()
        return self._future.done()


class StreamTransfer:
    """For CUDA: copies from pinned memory on a stream of its own, beside the running step."""

    shares_memory = False

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def start(self, buffer: Tensor, *, into: Tensor | None = None) -> Arrival:
        compute = torch.cuda.current_stream(self._device)
        # Allocated for the stream that will read it; its memory may have been an evicted version's,
        # which kernels under way still read.
        arriving = into
        if arriving is None:
            arriving = torch.empty_like(buffer, device=self._device, pin_memory=False)
        self._stream.wait_stream(compute)
        with torch.cuda.stream(self._stream):
            arriving.copy_(buffer, non_blocking=True)
            done = torch.cuda.Event()
            done.record(self._stream)
        return Arrival(arriving, done)


def make_transfer(device: torch.device) -> SharedTransfer | StreamTransfer:
    return StreamTransfer(device) if device.type == "cuda" else SharedTransfer()
