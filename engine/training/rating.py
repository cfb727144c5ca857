"""Learning from single ratings: KTO (arXiv 2402.01306) and its relative, as TRL 1.16 defines them.

A step's completions are compared with how far the policy has moved on completions of other
prompts: the same ones, each after the prompt of the row behind it.
"""

from array import array
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .config import KtoSettings
from .error import InvalidTrainingData
from .example import Rating, Rows
from .factors import TrainedFactors
from .head import TokenScores
from .network import TrainingNetwork
from .packed_batch import PackedBatch, Packer, sequence_sums
from .quantum import Quanta
from .step_plan import fill_micro_batches
from .sweep import Sweep
from .tally import Tally
from .task import digest_rows


class RatingTask:
    """Ratings and their loss; ``reference`` [N, 1] is filled in before use."""

    num_completions = 1

    def __init__(self, ratings: Rows[Rating], settings: KtoSettings) -> None:
        self._lengths, self._lines = array("q"), array("q")
        labels: list[bool] = []
        for rating in ratings:
            self._lengths.append(len(rating.prompt) + len(rating.completion))
            self._lines.append(rating.line)
            labels.append(rating.is_desirable)
            if not (rating.prompt and rating.completion):
                raise InvalidTrainingData(
                    f"line {rating.line} has an empty prompt or completion; give both at least one "
                    "token"
                )
        self._ratings = ratings
        self._labels = torch.tensor(labels, dtype=torch.bool)
        self._longest = max(self._lengths, default=0)
        self.settings = settings
        self.reference: Tensor | None = None

    @property
    def digest(self) -> str:
        return digest_rows(
            tuple(np.array(part) for part in (r.prompt, r.completion, (r.is_desirable,)))
            for r in self._ratings
        )

    @property
    def num_rows(self) -> int:
        return len(self._ratings)

    def num_tokens(self, row: int) -> int:
        return self._lengths[row]

    def num_positions(self, row: int) -> int:
        return self.num_tokens(row)

    def line(self, row: int) -> int:
        return self._lines[row]

    def pack(self, rows: Sequence[int], device: torch.device) -> PackedBatch:
        packer = Packer()
        for row in rows:
            packer.add_rating(row, self._ratings[row])
        return packer.pack(device)

    def mismatched(self, rows: Sequence[int]) -> "RatingTask":
        """Each prompt of ``rows`` with the completion of the row before, the first with the last's.

        None is longer than the longest row, so that all fit where that fits.
        """
        found = [self._ratings[row] for row in rows]
        pairs = [
            Rating(
                own.prompt,
                other.completion[: self._longest - len(own.prompt)],
                own.is_desirable,
                own.line,
            )
            for own, other in zip(found, [found[-1], *found[:-1]], strict=True)
        ]
        return RatingTask(pairs, self.settings)

    def step_loss(self, rows: Sequence[int], *, kl: float = 0.0) -> "RatingLoss":
        assert self.reference is not None
        return RatingLoss(self.settings, self.reference[:, 0], self._labels, rows, kl)


class RatingLoss:
    """Weighted mean over the ratings of a whole step; ``kl`` is that step's, at least 0."""

    def __init__(
        self,
        settings: KtoSettings,
        reference: Tensor,
        labels: Tensor,
        rows: Sequence[int],
        kl: float,
    ) -> None:
        self._settings = settings
        self._reference = reference
        self._labels = labels
        self._num_rows = len(rows)
        self._num_desirable = int(labels[list(rows)].sum())
        self._kl = kl

    def of(self, batch: PackedBatch) -> Callable[[Tensor], Tensor]:
        return lambda log_probs: self.values(batch, log_probs).sum() / self._num_rows

    def tally(self, batch: PackedBatch, scores: TokenScores) -> Tally:
        sums, count = sequence_sums(batch, scores.log_probs), len(batch.rows)
        good = self._is_desirable(batch)
        rewards = self._settings.beta * self._ratios(batch, sums)
        is_good_token = good[batch.sequences]
        tally = Tally()
        tally.add("loss", float(self.values(batch, scores.log_probs).sum()), count)
        tally.add("kl", self._kl * count, count)
        tally.add("entropy", float(scores.entropies.sum()), float(batch.num_predictions))
        right = float((scores.is_top & is_good_token).sum())
        tally.add("mean_token_accuracy", right, float(is_good_token.sum()))
        for name, chosen in (("chosen", good), ("rejected", ~good)):
            tally.add(f"rewards/{name}", float(rewards[chosen].sum()), float(chosen.sum()))
            tally.add(f"logps/{name}", float(sums[chosen].sum()), float(chosen.sum()))
        num_bad = self._num_rows - self._num_desirable
        if self._num_desirable and num_bad:
            # The difference of two means, as a mean over all rows.
            share = self._num_rows / self._num_desirable, self._num_rows / num_bad
            margins = share[0] * rewards[good].sum() - share[1] * rewards[~good].sum()
            tally.add("rewards/margins", float(margins), count)
        return tally

    def values(self, batch: PackedBatch, log_probs: Tensor) -> Tensor:
        """The weighted loss of each rating of the batch."""
        settings, good = self._settings, self._is_desirable(batch)
        ratios = self._ratios(batch, sequence_sums(batch, log_probs))
        kl = self._kl if settings.loss == "kto" else 0.0
        distance = settings.beta * torch.where(good, ratios - kl, kl - ratios)
        weights = torch.where(good, settings.desirable_weight, settings.undesirable_weight)
        return weights * (1 - torch.sigmoid(distance))

    def _ratios(self, batch: PackedBatch, sums: Tensor) -> Tensor:
        return sums - self._reference[list(batch.rows)].to(sums.device)

    def _is_desirable(self, batch: PackedBatch) -> Tensor:
        return self._labels[list(batch.rows)].to(batch.ids.device)


def estimate_kl(
    network: TrainingNetwork,
    task: RatingTask,
    rows: Sequence[int],
    factors: TrainedFactors | None,
    reference: TrainedFactors | None,
    *,
    micro_batch_tokens: int,
) -> Quanta[float]:
    """How much likelier than under the reference mismatched completions are, on average; in nats
    per completion and at least 0. Carries no gradient; 0 at once if the loss has no use for it."""
    if task.settings.loss != "kto":
        return 0.0
    pairs, total = task.mismatched(rows), 0.0
    for part in fill_micro_batches(range(pairs.num_rows), pairs.num_tokens, micro_batch_tokens):
        batch = pairs.pack(part, network.device)
        policy = yield from Sweep(network, batch, factors).score()
        anchor = yield from Sweep(network, batch, reference).score()
        total += float((policy.log_probs - anchor.log_probs).sum())
    return max(0.0, total / pairs.num_rows)
