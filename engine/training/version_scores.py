"""What only the trainer can measure of a finished version, row by row: the gate's evidence.

The version and what it is to replace are asked about the same rows, on the same base, in quanta.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .beside import Beside
from .evaluation import open_step_loss
from .factors import TrainedFactors
from .network import TrainingNetwork
from .packed_batch import sequence_sums
from .preference import PreferenceLoss
from .quantum import Quanta
from .randomness import shuffled
from .rating import RatingLoss
from .row_scores import RowScores, ScoredRows, VersionScores
from .step_plan import fill_micro_batches
from .sweep import Sweep
from .task import SupervisedTask, Task

_MOST_ROWS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """Scores up to 256 rows of a task, always the same ones. ``reference`` is that of ratings."""

    network: TrainingNetwork
    reference: TrainedFactors | None
    micro_batch_tokens: int
    seed: int

    def compare(
        self,
        candidate: TrainedFactors,
        beside: Beside,
        start: TrainedFactors | None,
        *,
        validation: Task | None,
        held_out: Sequence[int],
    ) -> Quanta[VersionScores]:
        """Everything that there are rows for; ``held_out`` are replay rows."""
        baseline = beside.baseline(start)
        scored: dict[str, ScoredRows] = {}
        for name, task, rows in (
            ("validation", validation, range(validation.num_rows if validation else 0)),
            ("replay", beside.replay, held_out),
        ):
            if task is not None:
                chosen = self._sample(rows)
                new = yield from self._score(task, chosen, candidate)
                old = yield from self._score(task, chosen, baseline.factors)
                scored[name] = ScoredRows(candidate=new, baseline=old)
        divergences: tuple[float, ...] = ()
        if beside.recent is not None:
            divergences = yield from self._diverge(beside.recent, candidate, baseline.factors)
        return VersionScores(
            baseline=baseline.kind,
            validation=scored.get("validation"),
            replay=scored.get("replay"),
            divergences=divergences,
        )

    def _score(
        self, task: Task, rows: Sequence[int], factors: TrainedFactors | None
    ) -> Quanta[RowScores]:
        budget = self.micro_batch_tokens
        loss = yield from open_step_loss(
            *(self.network, task, rows, factors, self.reference), micro_batch_tokens=budget
        )
        found: dict[int, tuple[float, float, float, float]] = {}
        for part in fill_micro_batches(rows, task.num_tokens, budget):
            batch = task.pack(part, self.network.device)
            log_probs = (yield from Sweep(self.network, batch, factors).score()).log_probs
            columns = [[0.0] * len(part)] * 4
            match loss:
                case PreferenceLoss():
                    scores = loss.pair_scores(batch, log_probs)
                    columns = [scores.losses, [1.0] * len(part), scores.margins, scores.chosen]
                case RatingLoss():
                    columns[:2] = [loss.values(batch, log_probs).tolist(), [1.0] * len(part)]
                case _:
                    weighted = sequence_sums(batch, -batch.weights * log_probs)
                    columns[:2] = [weighted.tolist(), sequence_sums(batch, batch.weights).tolist()]
            found |= dict(zip(batch.rows, zip(*columns, strict=True), strict=True))
        losses, weights, margins, chosen = zip(*(found[row] for row in rows), strict=True)
        if not isinstance(loss, PreferenceLoss):
            margins = chosen = ()
        return RowScores(losses=losses, weights=weights, margins=margins, chosen=chosen)

    def _diverge(
        self, task: SupervisedTask, candidate: TrainedFactors, baseline: TrainedFactors | None
    ) -> Quanta[tuple[float, ...]]:
        rows = self._sample(range(task.num_rows))
        found: dict[int, float] = {}
        for part in fill_micro_batches(rows, task.num_tokens, self.micro_batch_tokens):
            batch = task.pack(part, self.network.device)
            anchor = yield from Sweep(self.network, batch, baseline).normed()
            values = yield from Sweep(self.network, batch, candidate).divergence(anchor)
            means = sequence_sums(batch, batch.weights * values)
            means /= sequence_sums(batch, batch.weights)
            found |= dict(zip(batch.rows, means.tolist(), strict=True))
        return tuple(found[row] for row in rows)

    def _sample(self, rows: Sequence[int]) -> list[int]:
        if len(rows) <= _MOST_ROWS:
            return list(rows)
        places = shuffled(len(rows), self.seed, "scored")[:_MOST_ROWS]
        return sorted(rows[place] for place in places)
