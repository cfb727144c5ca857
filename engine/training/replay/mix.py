"""Which replay rows a step takes, what is measured on those held out, and how the share adapts.

What changes is in the run's state, so that a resumed run repeats the same rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..checkpoint import RunState
from ..continual_config import ReplaySettings
from ..evaluation import evaluate
from ..factors import TrainedFactors
from ..network import TrainingNetwork
from ..quantum import Quanta
from ..randomness import shuffled
from ..task import SupervisedTask

# How fast the share grows while the perplexity is too high, and falls when it is regained.
_GROWTH = 1.5
_MOST_MEASURED = 64


@dataclass(frozen=True, slots=True)
class ReplayShare:
    """The replay rows of one step and their share of its loss."""

    rows: tuple[int, ...]
    share: float


class ReplayMix:
    """The rows of ``task`` beside those that a run learns."""

    def __init__(self, task: SupervisedTask, settings: ReplaySettings, seed: int) -> None:
        self.task = task
        self.settings = settings
        order = shuffled(task.num_rows, seed, "replay")
        num_held_out = min(settings.num_held_out, task.num_rows // 4)
        # Where nothing can or shall be held out, what is learnt is measured.
        self.held_out: Sequence[int] = order[:num_held_out] or order[:_MOST_MEASURED]
        self._learnt = order[num_held_out:]
        self._seed = seed

    def take(self, state: RunState, num_rows: int) -> tuple[RunState, ReplayShare]:
        """Rows for a step of ``num_rows`` others; fractions of a row are owed to later steps."""
        share = state.replay_share or self.settings.share
        owed = state.replay_owed + num_rows * share / (1 - share)
        count = int(owed)
        first = state.replay_taken
        rows = tuple(self._row(place) for place in range(first, first + count))
        after = replace(
            state, replay_share=share, replay_owed=owed - count, replay_taken=first + count
        )
        return after, ReplayShare(rows, count / (count + num_rows))

    def measure(
        self,
        network: TrainingNetwork,
        factors: TrainedFactors,
        state: RunState,
        *,
        micro_batch_tokens: int,
    ) -> Quanta[RunState]:
        """Score the held-out rows; the share follows their perplexity."""
        metrics = yield from evaluate(
            *(network, factors, self.task),
            micro_batch_tokens=micro_batch_tokens,
            rows=self.held_out,
        )
        loss = metrics["eval_loss"]
        first = loss if state.replay_first_loss is None else state.replay_first_loss
        share = self._adapted(state.replay_share or self.settings.share, loss - first)
        return replace(state, replay_loss=loss, replay_first_loss=first, replay_share=share)

    def metrics(self, state: RunState) -> dict[str, float]:
        """What was measured last, and the share of the steps that follow."""
        if state.replay_loss is None or state.replay_share is None:
            return {}
        return {
            "replay/eval_loss": state.replay_loss,
            "replay/eval_perplexity": math.exp(min(state.replay_loss, 700.0)),
            "replay/share": state.replay_share,
        }

    def _adapted(self, share: float, rise: float) -> float:
        """``rise`` is of the loss: the logarithm of that of the perplexity."""
        settings = self.settings
        if not settings.adaptive:
            return share
        if rise > math.log1p(settings.tolerance):
            return min(settings.max_share, share * _GROWTH)
        return max(settings.share, share / _GROWTH) if rise <= 0 else share

    def _row(self, place: int) -> int:
        passed, place = divmod(place, len(self._learnt))
        order = shuffled(len(self._learnt), self._seed, "replay pass", passed)
        return self._learnt[order[place]]
