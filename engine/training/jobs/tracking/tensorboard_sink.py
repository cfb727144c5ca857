"""TensorBoard's event files, written without TensorFlow and without torch."""

import time
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from .message import TrackedRun


class TensorBoardSink:
    """One event file per process in the run's folder."""

    def __init__(self, run: TrackedRun) -> None:
        self._events: Any = import_module("tensorboard.compat.proto.event_pb2")
        self._summaries: Any = import_module("tensorboard.compat.proto.summary_pb2")
        writer: Any = import_module("tensorboard.summary.writer.event_file_writer")
        self._writer = writer.EventFileWriter(run.folder, flush_secs=5)

    def begin(self, step: int) -> None:
        """Readers forget what older files say of steps after ``step``."""
        started = self._events.SessionLog(status=self._events.SessionLog.START)
        self._write(step + 1, session_log=started)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        kind = self._summaries.Summary
        scalars = [kind.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step, summary=kind(value=scalars))

    def close(self, *, succeeded: bool) -> None:
        self._writer.close()

    def _write(self, step: int, **content: object) -> None:
        event = self._events.Event(wall_time=time.time(), step=step, **content)
        self._writer.add_event(event)
