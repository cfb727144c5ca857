"""trackio's local store, or the Space that its environment variables name."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

from .message import TrackedRun

_PROJECT: Final = "multiflora"


class TrackioSink:
    """A job is one run under its own id, also after a restart."""

    def __init__(self, run: TrackedRun) -> None:
        trackio: Any = import_module("trackio")
        self._run = trackio.init(
            project=run.project or _PROJECT,
            name=run.id,
            config={**run.config, "name": run.name},
            resume="allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def begin(self, step: int) -> None:
        """Nothing: a step that comes again is there twice, with the same values."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "train/global_step": step}, step=step)

    def close(self, *, succeeded: bool) -> None:
        self._run.finish()
