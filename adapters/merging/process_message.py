"""What a merge's own process is asked, and what it says on its stdout: one JSON object per line."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

import msgspec

from .recipe import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeLimits:
    """What one merge may cost. Raises ``ValueError`` for a limit below 1.

    ``max_bytes`` is for each file that it writes; ``memory_bytes`` for its data, without the code
    of libraries. ``num_threads`` leaves half of the machine to those who are served.
    """

    max_bytes: int = 4 << 30
    memory_bytes: int = 16 << 30
    cpu_seconds: int = 3600
    wall_seconds: int = 1800
    num_threads: int = field(default_factory=lambda: max(1, (os.cpu_count() or 1) // 2))

    def __post_init__(self) -> None:
        for limit in fields(self):
            if getattr(self, limit.name) < 1:
                raise ValueError(
                    f"{limit.name} is {getattr(self, limit.name)}; it must be at least 1"
                )


class MergeRequest(msgspec.Struct, frozen=True):
    """``folders`` and ``out`` are absolute paths; ``names`` are the parents' in the report."""

    folders: tuple[str, ...]
    names: tuple[str, ...]
    recipe: Recipe
    out: str
    limits: MergeLimits


class Progress(msgspec.Struct, frozen=True, tag=True):
    """The share of modules that are merged."""

    share: float


class Done(msgspec.Struct, frozen=True, tag=True):
    """``report`` is all of it; ``provenance`` is what a version keeps of it."""

    report: Mapping[str, Any]
    provenance: Mapping[str, Any]


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The parents' or the recipe's fault; see ``AdapterRejected``."""

    code: str
    message: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The machine's fault, as an ``OSError``: disk full, no permission."""

    number: int
    reason: str


Message: TypeAlias = Progress | Done | Refused | Failed
