"""What a place for metrics must be able to do, and the choice of one. Runs in a process of its own.

Its library is imported there, when the run is opened.
"""

from collections.abc import Mapping
from typing import Protocol

from .message import TrackedRun
from .tensorboard_sink import TensorBoardSink
from .trackio_sink import TrackioSink
from .wandb_sink import WandbSink


class Sink(Protocol):
    """Any method may raise and may block: only this sink is lost by it."""

    def begin(self, step: int) -> None:
        """Training goes on after ``step``."""
        ...

    def add(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self, *, succeeded: bool) -> None:
        """Make everything durable."""
        ...


def open_sink(run: TrackedRun) -> Sink:
    """Raises ``ImportError``, and whatever the library raises."""
    match run.sink:
        case "tensorboard":
            return TensorBoardSink(run)
        case "wandb":
            return WandbSink(run)
        case "trackio":
            return TrackioSink(run)
