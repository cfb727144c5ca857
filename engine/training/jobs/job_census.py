"""All jobs in numbers, for whoever watches the server."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..data.config import Method
from .job import Status

Split: TypeAlias = Literal["train", "validation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCensus:
    """``statuses`` and ``verdicts`` count the jobs that are kept; a verdict is whether the quality
    gate was passed. ``losses`` are the last ones of jobs that train.
    """

    statuses: Mapping[Status, int]
    verdicts: Mapping[bool, int]
    losses: Mapping[tuple[Method, Split], float]
