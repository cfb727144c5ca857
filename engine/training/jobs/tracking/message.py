"""What a sink's process is told on its stdin: one JSON object per line."""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

import msgspec

SinkName: TypeAlias = Literal["tensorboard", "wandb", "trackio"]
SINKS: tuple[SinkName, ...] = get_args(SinkName)


class TrackedRun(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The first message: ``sink`` is to show the job ``id``, as ``name``, from ``folder``.

    A job that goes on after a restart is the same run again. ``config`` is what it was made with.
    ``project`` None is the sink's own choice.
    """

    sink: SinkName
    id: str
    name: str
    folder: str
    config: Mapping[str, Any] = {}
    project: str | None = None
    entity: str | None = None
    tags: tuple[str, ...] = ()


class Begun(msgspec.Struct, frozen=True, tag=True):
    """Training goes on after ``step``: what was told of later steps comes again."""

    step: int


class Measured(msgspec.Struct, frozen=True, tag=True):
    """Values under the names that Hugging Face's trainers log, such as ``train/loss``."""

    step: int
    values: Mapping[str, float]


class Ended(msgspec.Struct, frozen=True, tag=True):
    """The last message; without it the run goes on in another process."""

    succeeded: bool


Message: TypeAlias = TrackedRun | Begun | Measured | Ended
