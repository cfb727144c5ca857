"""How training shares a device: in quanta, pieces of work that nothing interrupts.

Whoever owns the device asks ``ready`` and calls ``run_quantum`` when serving leaves room; between
two calls it may do anything, for any time, without changing a result.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

QuantumKind = Literal["forward", "loss", "backward", "optimizer", "checkpoint", "summary"]
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class StepTaken:
    """The optimizer has moved; ``step`` counts from 1. Metrics have TRL's names."""

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The validation data was scored after ``step``; the first time it is always the best."""

    step: int
    metrics: Mapping[str, float]
    is_best: bool


@dataclass(frozen=True, slots=True)
class CheckpointWritten:
    """The state after ``step`` is in ``folder``, whole and durable."""

    step: int
    folder: Path


@dataclass(frozen=True, slots=True)
class RunEnded:
    """All steps are taken, or validation has not improved for as long as the patience allows."""

    step: int
    reason: Literal["finished", "stopped_early"]


TrainingEvent = StepTaken | Evaluated | CheckpointWritten | RunEnded


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantumReport:
    """What one quantum did: the kind of work, over how many token rows, in which layer if in one.

    Quanta of one kind and number of tokens take about the same time.
    """

    kind: QuantumKind
    num_tokens: int = 0
    layer: int | None = None
    event: TrainingEvent | None = None


# Work that pauses after every quantum and ends with a result.
Quanta = Generator[QuantumReport, None, Result]


class QuantumSource(Protocol):
    """Work in quanta; a training run is one."""

    def ready(self) -> bool:
        """Whether a quantum can run: False at the end, and while the disk is waited for."""
        ...

    def run_quantum(self) -> QuantumReport:
        """Run the next quantum. Raises ``TrainingError``, after which nothing is ready again."""
        ...
