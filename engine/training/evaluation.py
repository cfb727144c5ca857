"""Scoring validation rows without gradients and without noise."""

import math
from collections.abc import Mapping

from .factors import TrainedFactors
from .network import TrainingNetwork
from .quantum import Quanta
from .step_plan import fill_micro_batches
from .sweep import Sweep
from .tally import Tally
from .task import Task


def evaluate(
    network: TrainingNetwork, factors: TrainedFactors, task: Task, *, micro_batch_tokens: int
) -> Quanta[Mapping[str, float]]:
    """Metrics over all rows, with TRL's prefix ``eval_``; the loss is a mean over the whole set.

    ``eval_perplexity`` is of a supervised loss; a loss on preferences has none.
    """
    rows = range(task.num_rows)
    loss, tally = task.step_loss(rows), Tally()
    for part in fill_micro_batches(rows, task.num_tokens, micro_batch_tokens):
        batch = task.pack(part, network.device)
        scores = yield from Sweep(network, batch, factors).score()
        tally.merge(loss.tally(batch, scores))
    metrics = {f"eval_{name}": value for name, value in tally.means().items()}
    if "eval_rewards/margins" not in metrics:
        # exp overflows where a loss is absurd.
        metrics["eval_perplexity"] = math.exp(min(metrics["eval_loss"], 700.0))
    return metrics
