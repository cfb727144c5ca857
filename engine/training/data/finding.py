"""Something worth knowing about a data set or a run, in plain words."""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Severity: TypeAlias = Literal["info", "warning", "error"]
MAX_EXAMPLES: Final = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """``message`` has the numbers and what to do; ``lines`` are a few examples, counted from 1.

    With an ``error``, training would be worthless.
    """

    severity: Severity
    code: str
    message: str
    lines: tuple[int, ...] = ()


class LineSample:
    """How many lines there were, and the first few of them."""

    def __init__(self) -> None:
        self.num_lines = 0
        self.first: list[int] = []

    def add(self, line: int) -> None:
        self.num_lines += 1
        if len(self.first) < MAX_EXAMPLES:
            self.first.append(line)

    def finding(self, severity: Severity, code: str, message: str) -> Finding:
        return Finding(severity, code, message, tuple(self.first))


def percent(part: float, whole: float) -> str:
    """A share for people: ``3.2 %``."""
    return f"{100 * part / whole:.1f} %" if whole else "0.0 %"
