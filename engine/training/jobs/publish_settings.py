"""What becomes of a trained version that passed its gate."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

PublishMode: TypeAlias = Literal["point", "canary"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishSettings:
    """``point`` moves the job's name to the version, or makes it. ``canary`` gives the version the
    share ``weight`` of the name's requests; the name must exist, and stay where the job began.
    """

    mode: PublishMode = "point"
    weight: float = 0.1

    def __post_init__(self) -> None:
        if self.mode not in ("point", "canary"):
            raise ValueError(f"mode is {self.mode!r}; it must be point or canary")
        if not 0 < self.weight <= 1:
            raise ValueError(f"weight is {self.weight}; it must be above 0 and at most 1")
