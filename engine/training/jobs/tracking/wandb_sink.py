"""Weights & Biases; the key, the server and the mode come from its own environment variables."""

import os
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

from .message import TrackedRun

_PROJECT: Final = "multiflora"
# Of this machine, its packages and the code nothing is sent: only what a job measured.
_QUIET: Final[Mapping[str, Any]] = {
    "silent": True,
    "console": "off",
    "disable_git": True,
    "disable_code": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}


class WandbSink:
    """A job is one run under its own id, also after a restart."""

    def __init__(self, run: TrackedRun) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.makedirs(run.folder, exist_ok=True)
        wandb: Any = import_module("wandb")
        self._run = wandb.init(
            project=run.project or os.environ.get("WANDB_PROJECT", _PROJECT),
            entity=run.entity,
            id=run.id,
            name=run.name,
            tags=list(run.tags),
            config=dict(run.config),
            dir=run.folder,
            resume="allow",
            settings=wandb.Settings(**_QUIET),
        )

    def begin(self, step: int) -> None:
        """Nothing: steps that it knows already are ignored when they come again."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "train/global_step": step}, step=step)

    def close(self, *, succeeded: bool) -> None:
        self._run.finish(exit_code=0 if succeeded else 1)
