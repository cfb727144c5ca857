"""Learning from pairs: DPO and its relatives, against cached log-probabilities of a reference."""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .config import PreferenceSettings
from .error import InvalidTrainingData
from .example import Preference, Rows
from .head import TokenScores
from .packed_batch import PackedBatch, Packer
from .tally import Tally
from .task import digest_rows


@dataclass(frozen=True, slots=True)
class PairScores:
    """How much likelier than under the reference each completion is: summed log-ratios [N], and
    the lengths of the completions in tokens [N]."""

    chosen: Tensor
    rejected: Tensor
    chosen_length: Tensor
    rejected_length: Tensor


def pair_losses(settings: PreferenceSettings, pairs: PairScores) -> Tensor:
    """The loss of each pair [N], as TRL 1.16 defines it for ``settings.loss``."""
    beta, smoothing = settings.beta, settings.label_smoothing
    logits = beta * (pairs.chosen - pairs.rejected)
    match settings.loss:
        case "sigmoid":
            return -(1 - smoothing) * logsigmoid(logits) - smoothing * logsigmoid(-logits)
        case "robust":
            clean, flipped = logsigmoid(logits), logsigmoid(-logits)
            return (smoothing * flipped - (1 - smoothing) * clean) / (1 - 2 * smoothing)
        case "hinge":
            return torch.relu(1 - logits)
        case "ipo":
            return (_mean_margin(pairs) - 1 / (2 * beta)) ** 2
        case "sigmoid_norm":
            return -logsigmoid(beta * _mean_margin(pairs))
        case "apo_zero":
            return 1 - torch.sigmoid(beta * pairs.chosen) + torch.sigmoid(beta * pairs.rejected)
        case "apo_down":
            return torch.sigmoid(beta * pairs.chosen) + 1 - torch.sigmoid(logits)


def _mean_margin(pairs: PairScores) -> Tensor:
    """The margin of log-ratios per token."""
    return pairs.chosen / pairs.chosen_length - pairs.rejected / pairs.rejected_length


class PreferenceTask:
    """Pairs and their loss; ``reference`` [N, 2], chosen and rejected, is filled in before use."""

    def __init__(self, preferences: Rows[Preference], settings: PreferenceSettings) -> None:
        self._lengths, self._lines = array("q"), array("q")
        for preference in preferences:
            parts = (preference.prompt, preference.chosen, preference.rejected)
            self._lengths.extend(map(len, parts))
            self._lines.append(preference.line)
            if not (preference.prompt and preference.chosen and preference.rejected):
                raise InvalidTrainingData(
                    f"line {preference.line} has an empty prompt or completion; give all three at "
                    "least one token"
                )
        self._preferences = preferences
        self._settings = settings
        self.reference: Tensor | None = None

    @property
    def digest(self) -> str:
        return digest_rows(
            tuple(np.array(part) for part in (p.prompt, p.chosen, p.rejected))
            for p in self._preferences
        )

    @property
    def num_rows(self) -> int:
        return len(self._preferences)

    def num_tokens(self, row: int) -> int:
        """The prompt counts once: both completions share it."""
        return sum(self._parts(row))

    def num_positions(self, row: int) -> int:
        prompt, chosen, rejected = self._parts(row)
        return prompt + max(chosen, rejected)

    def line(self, row: int) -> int:
        return self._lines[row]

    def pack(self, rows: Sequence[int], device: torch.device) -> PackedBatch:
        packer = Packer()
        for row in rows:
            packer.add_preference(row, self._preferences[row])
        return packer.pack(device)

    def step_loss(self, rows: Sequence[int]) -> "PreferenceLoss":
        assert self.reference is not None
        chosen_tokens = sum(self._parts(row)[1] for row in rows)
        return PreferenceLoss(self._settings, self.reference, len(rows), chosen_tokens)

    def _parts(self, row: int) -> Sequence[int]:
        """Tokens of the prompt, of the chosen and of the rejected completion."""
        return self._lengths[3 * row : 3 * row + 3]


class PreferenceLoss:
    """Mean over the pairs of a whole step, plus the mean over its chosen tokens if asked for."""

    def __init__(
        self,
        settings: PreferenceSettings,
        reference: Tensor,
        num_pairs: int,
        num_chosen_tokens: int,
    ) -> None:
        self._settings = settings
        self._reference = reference
        self._num_pairs = num_pairs
        self._num_chosen_tokens = num_chosen_tokens

    def of(self, batch: PackedBatch) -> Callable[[Tensor], Tensor]:
        return lambda log_probs: self._value(batch, log_probs)

    def tally(self, batch: PackedBatch, scores: TokenScores) -> Tally:
        pairs, count = self._pairs(batch, scores.log_probs), len(batch.rows)
        beta, sums = self._settings.beta, sequence_sums(batch, scores.log_probs)
        margins = beta * (pairs.chosen - pairs.rejected)
        is_chosen = batch.sequences % 2 == 0
        num_chosen, num_tokens = float(is_chosen.sum()), float(batch.num_predictions)
        tally = Tally()
        loss = float(self._value(batch, scores.log_probs))
        tally.add("loss", loss * self._num_pairs, count)
        tally.add("entropy", float(scores.entropies.sum()), num_tokens)
        tally.add("mean_token_accuracy", float((scores.is_top & is_chosen).sum()), num_chosen)
        tally.add("rewards/chosen", float(beta * pairs.chosen.sum()), count)
        tally.add("rewards/rejected", float(beta * pairs.rejected.sum()), count)
        tally.add("rewards/margins", float(margins.sum()), count)
        tally.add("rewards/accuracies", float((margins > 0).sum()), count)
        tally.add("logps/chosen", float(sums[0::2].sum()), count)
        tally.add("logps/rejected", float(sums[1::2].sum()), count)
        return tally

    def _value(self, batch: PackedBatch, log_probs: Tensor) -> Tensor:
        value = pair_losses(self._settings, self._pairs(batch, log_probs)).sum() / self._num_pairs
        if self._settings.sft_weight:
            chosen = log_probs[batch.sequences % 2 == 0].sum()
            value = value - self._settings.sft_weight * chosen / self._num_chosen_tokens
        return value

    def _pairs(self, batch: PackedBatch, log_probs: Tensor) -> PairScores:
        reference = self._reference[list(batch.rows)].to(log_probs.device)
        ratios = sequence_sums(batch, log_probs).view(-1, 2) - reference
        lengths = sequence_sums(batch, torch.ones_like(log_probs)).view(-1, 2)
        return PairScores(ratios[:, 0], ratios[:, 1], lengths[:, 0], lengths[:, 1])


def sequence_sums(batch: PackedBatch, log_probs: Tensor) -> Tensor:
    """Log-probabilities [P] summed by sequence, [num_sequences].

    Summed sequence by sequence: atomic adds would make the order, and the bits, depend on timing.
    """
    lengths = torch.bincount(batch.sequences, minlength=batch.num_sequences).tolist()
    return torch.stack([part.sum() for part in log_probs.split(lengths)])
