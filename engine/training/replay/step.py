"""The replayed part of an optimizer step: cross-entropy, and a divergence from an anchor."""

from collections.abc import Callable

from ..continual_config import ReplaySettings
from ..factors import TrainedFactors
from ..network import TrainingNetwork
from ..quantum import Quanta
from ..step_plan import fill_micro_batches
from ..sweep import Anchor, Noise, Sweep
from ..tally import Tally
from ..task import SupervisedTask
from .mix import ReplayShare


def train_replay(
    network: TrainingNetwork,
    task: SupervisedTask,
    taken: ReplayShare,
    factors: TrainedFactors,
    settings: ReplaySettings,
    *,
    anchor: TrainedFactors | None,
    noise: Callable[[int], Noise],
    micro_batch_tokens: int,
) -> Quanta[Tally]:
    """Add the gradient of the rows' share of the step's loss; returns what it was.

    ``anchor`` None is the bare base: the same network without factors. It costs one more pass up.
    """
    if not taken.rows:
        return Tally()
    total, loss = Tally(), task.step_loss(taken.rows)
    weight = taken.share * settings.loss_weight
    for number, part in enumerate(
        fill_micro_batches(taken.rows, task.num_tokens, micro_batch_tokens)
    ):
        batch = task.pack(part, network.device)
        held = None
        if settings.kl_weight:
            normed = yield from Sweep(network, batch, anchor).normed()
            share = taken.share * settings.kl_weight / loss.total_weight
            held = Anchor(normed, share * batch.weights)
        value = loss.of(batch)
        sweep = Sweep(network, batch, factors, noise(number))
        scores = yield from sweep.train(
            lambda log_probs, value=value: weight * value(log_probs), anchor=held
        )
        tally = loss.tally(batch, scores).renamed("replay/")
        if scores.divergences is not None:
            divergence = float((batch.weights * scores.divergences).sum())
            tally.add("replay/kl", divergence, float(batch.weights.sum()))
        total.merge(tally)
    return total
