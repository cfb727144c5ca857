"""What the gate and its checking process say to each other, as JSON."""

from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from .inspection import CheckedAdapter, GateLimits
from .target import Projection


class CheckRequest(msgspec.Struct, frozen=True):
    """Paths are absolute."""

    source: str
    staged: str
    projections: Sequence[Projection]
    limits: GateLimits
    with_template: bool = False


class Accepted(msgspec.Struct, frozen=True, tag=True):
    checked: CheckedAdapter


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The adapter's fault; see ``AdapterRejected``."""

    code: str
    message: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The machine's fault, as an ``OSError``: disk full, no permission."""

    number: int
    reason: str


Verdict: TypeAlias = Accepted | Refused | Failed
