"""Work that fills the device's time between serving steps, as the engine's loop sees it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from .messages import CancelTraining, PauseTraining, Report, ResumeTraining, StartTraining, Trained
from .request import TrainingStats
from .training.job import JobFailed

TrainingCommand = StartTraining | PauseTraining | ResumeTraining | CancelTraining
NO_WORK: Final = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingLoad:
    """What serving did in this turn and is about to do.

    ``step_seconds`` is 0 if no step ran. A request that waits for its first token waits for the
    device: it is queued, or its prompt is not done. In a brief step prompts waited too.
    """

    step_seconds: float
    num_requests: int
    awaits_first_token: bool
    is_brief: bool = False


class Background(Protocol):
    """Training, or nothing; everything is called by the loop's thread."""

    def handle(self, command: TrainingCommand) -> None: ...

    def turn(self, load: ServingLoad) -> float:
        """Run one quantum if there is one and ``load`` leaves room for it; never raises.

        Returns the seconds after which it wants another turn: 0 at once, ``NO_WORK`` never.
        """
        ...

    def stats(self) -> TrainingStats: ...

    def close(self) -> None:
        """Stop all work where it is."""
        ...


class NoTraining:
    """Refuses every job with ``reason``."""

    def __init__(self, reason: str, report: Callable[[Report], None]) -> None:
        self._reason = reason
        self._report = report

    def handle(self, command: TrainingCommand) -> None:
        if isinstance(command, StartTraining):
            event = JobFailed("training_off", self._reason)
            self._report(Trained(str(command.job.get("id")), event))

    def turn(self, load: ServingLoad) -> float:
        return NO_WORK

    def stats(self) -> TrainingStats:
        return TrainingStats()

    def close(self) -> None:
        pass
