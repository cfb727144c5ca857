"""What a run has beside what it learns: rows to repeat, and what to compare itself with."""

from dataclasses import dataclass

from .config import TrainingSettings
from .factors import TrainedFactors
from .network import TrainingNetwork
from .replay.mix import ReplayMix
from .row_scores import BaselineKind
from .task import SupervisedTask
from .task_kind import check_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What a version is compared with; ``factors`` None is the bare base."""

    kind: BaselineKind
    factors: TrainedFactors | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """``recent`` are rows of what the ``live`` version answered of late; it is what the result is
    to replace."""

    replay: SupervisedTask | None = None
    recent: SupervisedTask | None = None
    live: TrainedFactors | None = None

    def check(self, settings: TrainingSettings, network: TrainingNetwork) -> None:
        """Raises ``InvalidTrainingData`` for rows that do not suit the run."""
        for task in (self.replay, self.recent):
            if task is not None:
                check_rows(task, settings, network)

    def mix(self, settings: TrainingSettings) -> ReplayMix | None:
        if self.replay is None:
            return None
        return ReplayMix(self.replay, settings.replay, settings.seed)

    def baseline(self, start: TrainedFactors | None) -> Baseline:
        """What a result is compared with; ``start`` is what the run went on from."""
        if self.live is not None:
            return Baseline(kind="live", factors=self.live)
        return Baseline(kind="base" if start is None else "start", factors=start)
