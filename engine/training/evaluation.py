"""Scoring validation rows without gradients and without noise."""

import math
from collections.abc import Mapping, Sequence

from .factors import TrainedFactors
from .network import TrainingNetwork
from .quantum import Quanta
from .rating import RatingTask, estimate_kl
from .step_plan import fill_micro_batches
from .sweep import Sweep
from .tally import Tally
from .task import StepLoss, SupervisedTask, Task


def open_step_loss(
    network: TrainingNetwork,
    task: Task,
    rows: Sequence[int],
    factors: TrainedFactors | None,
    reference: TrainedFactors | None,
    *,
    micro_batch_tokens: int,
) -> Quanta[StepLoss]:
    """The loss of a step over ``rows``, after the passes that some losses need before."""
    if not isinstance(task, RatingTask):
        return task.step_loss(rows)
    kl = yield from estimate_kl(
        *(network, task, rows, factors, reference), micro_batch_tokens=micro_batch_tokens
    )
    return task.step_loss(rows, kl=kl)


def evaluate(
    network: TrainingNetwork,
    factors: TrainedFactors | None,
    task: Task,
    *,
    micro_batch_tokens: int,
    reference: TrainedFactors | None = None,
    rows: Sequence[int] | None = None,
) -> Quanta[Mapping[str, float]]:
    """Metrics over ``rows`` (all by default) with TRL's prefix ``eval_``; a loss is their mean.

    ``eval_perplexity`` is of a supervised loss; a loss on preferences has none.
    """
    rows = range(task.num_rows) if rows is None else rows
    tally = Tally()
    loss = yield from open_step_loss(
        *(network, task, rows, factors, reference), micro_batch_tokens=micro_batch_tokens
    )
    for part in fill_micro_batches(rows, task.num_tokens, micro_batch_tokens):
        batch = task.pack(part, network.device)
        scores = yield from Sweep(network, batch, factors).score()
        tally.merge(loss.tally(batch, scores))
    metrics = {f"eval_{name}": value for name, value in tally.means().items()}
    if isinstance(task, SupervisedTask):
        # exp overflows where a loss is absurd.
        metrics["eval_perplexity"] = math.exp(min(metrics["eval_loss"], 700.0))
    return metrics
