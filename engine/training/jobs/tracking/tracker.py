"""Where the metrics of one job go beside its own log: none, one or several sinks."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from .message import Begun, Measured, TrackedRun
from .metric_name import tracked_values
from .sink_process import SinkProcess

OnFailure = Callable[[str, str], None]


class Tracker:
    """Starts its sinks with the first ``begin``. Nothing here waits or raises.

    ``on_failure(sink, reason)`` is called in a thread, once for a sink that fails.
    """

    def __init__(
        self,
        runs: Sequence[TrackedRun],
        *,
        on_failure: OnFailure,
        make_sink: Callable[..., SinkProcess] = SinkProcess,
    ) -> None:
        self._runs = tuple(runs)
        self._on_failure = on_failure
        self._make_sink = make_sink
        self._sinks: list[SinkProcess] = []

    def begin(self, step: int, config: Mapping[str, Any]) -> None:
        """Training goes on after ``step``, for the first time or again, with these settings."""
        if not self._sinks:
            self._sinks = [self._start(replace(run, config=config)) for run in self._runs]
        for sink in self._sinks:
            sink.put(Begun(step))

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows of metrics under TRL's names, each with its ``step``."""
        if self._sinks:
            for row in rows:
                values = {name: value for name, value in row.items() if name != "step"}
                self._put(Measured(row["step"], tracked_values(values)))

    def add_verdict(self, step: int, checks: Iterable[Mapping[str, Any]]) -> None:
        """The checks of the quality gate, as ``gate/NAME``."""
        values = {
            f"gate/{check['name']}": float(check["value"])
            for check in checks
            if check["value"] is not None and math.isfinite(check["value"])
        }
        self._put(Measured(step, values))

    def close(self, succeeded: bool | None) -> None:
        """The job has ended; None: it goes on in another process."""
        for sink in self._sinks:
            sink.close(succeeded)

    def wait(self) -> None:
        """Until all sinks are done, after ``close``."""
        for sink in self._sinks:
            sink.wait()

    def _start(self, run: TrackedRun) -> SinkProcess:
        return self._make_sink(run, on_failure=lambda reason: self._on_failure(run.sink, reason))

    def _put(self, message: Measured) -> None:
        for sink in self._sinks:
            sink.put(message)
