"""Device time of short calls, as a decode step sees it: from graphs, with weights not in cache."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

# Twice and more of any second-level cache: what is used again after this much was evicted.
ROTATION_BYTES = 256 << 20
_MEASURE_SECONDS = 0.06


@dataclass(frozen=True, slots=True)
class CallTime:
    """Median seconds of one call; ``captured`` is False where a graph could not hold it."""

    seconds: float
    captured: bool

    @property
    def microseconds(self) -> float:
        return round(self.seconds * 1e6, 2)


def copies_for(num_bytes: int, device: torch.device, *, most: int = 32) -> int:
    """How many copies of ``num_bytes`` to go round, so that none is found in cache."""
    if device.type != "cuda":
        return 1
    return max(2, min(most, -(-ROTATION_BYTES // num_bytes)))


def time_calls(
    calls: Sequence[Callable[[], object]], device: torch.device, *, capturable: bool = True
) -> CallTime:
    """Time ``calls`` one after the other, each on memory of its own; per call.

    Calls that synchronize are not ``capturable``: a capture that fails spoils all later ones.
    """
    if device.type != "cuda":
        started = time.perf_counter()
        for call in calls:
            call()
        return CallTime((time.perf_counter() - started) / len(calls), captured=False)
    run = _run_all(calls)
    run()
    torch.cuda.synchronize()
    measured = _capture(run) if capturable else run
    return CallTime(_median(measured) / len(calls), captured=capturable)


def _run_all(calls: Sequence[Callable[[], object]]) -> Callable[[], None]:
    def run() -> None:
        for call in calls:
            call()

    return run


def _capture(run: Callable[[], None]) -> Callable[[], None]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    return graph.replay


def _median(run: Callable[[], None]) -> float:
    """Seconds of one ``run``, by events."""
    run()
    once = _elapsed(run)
    repeats = max(5, min(100, int(_MEASURE_SECONDS / max(once, 1e-6))))
    return statistics.median(_elapsed(run) for _ in range(repeats))


def _elapsed(run: Callable[[], None]) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3


def copy_bandwidth(device: torch.device, *, num_bytes: int = 2 << 30) -> float:
    """Bytes per second of a device-to-device copy, reading and writing counted."""
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    timed = time_calls([lambda: target.copy_(source)] * 2, device)
    return 2 * num_bytes / timed.seconds
