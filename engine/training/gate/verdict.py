"""What the gate found: checks with their numbers, checks that could not be made, one answer."""

from dataclasses import asdict, dataclass, field
from typing import Any

from .policy import GatePolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One bar: the measured ``value`` and the ``limit`` that it must keep, in words ``rule``."""

    name: str
    passed: bool
    rule: str
    value: float | None = None
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class NotRun:
    """A check that there was nothing for."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The version passes if each check does that was made, and none is missing that is required."""

    checks: tuple[Check, ...]
    not_run: tuple[NotRun, ...] = ()
    policy: GatePolicy = field(default_factory=GatePolicy)
    baseline: str | None = None

    @property
    def missing(self) -> tuple[NotRun, ...]:
        """Required checks that were not made."""
        return tuple(one for one in self.not_run if one.name in self.policy.required)

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks) and not self.missing

    @property
    def complaint(self) -> str:
        """What failed, in one line."""
        failed = [f"{check.name}: {check.rule}" for check in self.checks if not check.passed]
        return "; ".join(failed + [f"{one.name} was not run: {one.reason}" for one in self.missing])

    def document(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "policy": self.policy.document(),
            "baseline": self.baseline,
            "checks": [asdict(check) for check in self.checks],
            "not_run": [asdict(one) for one in self.not_run],
        }
