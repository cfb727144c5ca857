"""A run of the loop as it is kept: what it learned from, its job, and what became of the result."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from .traffic import Traffic

Status: TypeAlias = Literal[
    "collecting",
    "training",
    "canary",
    "promoted",
    "rolled_back",
    "refused",
    "failed",
    "cancelled",
    "superseded",
]
# Of these, nothing was learned: what they took waits for the next run.
GIVEN_UP: Final[tuple[Status, ...]] = ("failed", "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRun:
    """One row. Times are Unix times; ``watched`` is when the canary began.

    ``file`` holds the ``num_rows`` rows while the job needs them. ``start`` is the version that was
    live, ``digest`` the trained one. ``verdict`` is what the last decision rests on.
    """

    id: str
    adapter: str
    status: Status
    num_rows: int
    created: int
    file: str | None = None
    job: str | None = None
    start: str | None = None
    digest: str | None = None
    traffic: Traffic = field(default_factory=Traffic)
    verdict: Mapping[str, Any] | None = None
    reason: str | None = None
    watched: int | None = None
    finished: int | None = None

    @property
    def is_over(self) -> bool:
        return self.finished is not None
