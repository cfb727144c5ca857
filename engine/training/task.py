"""What is learned: rows that can be packed, and a loss on their tokens' log-probabilities."""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .error import InvalidTrainingData
from .example import Example, Rows
from .head import TokenScores
from .packed_batch import PackedBatch, Packer
from .tally import Tally


class StepLoss(Protocol):
    """The loss of one optimizer step, as the sum of its micro-batches' losses."""

    def of(self, batch: PackedBatch) -> Callable[[Tensor], Tensor]:
        """This batch's part of the loss, a function of its log-probabilities [P]."""
        ...

    def tally(self, batch: PackedBatch, scores: TokenScores) -> Tally:
        """Metrics under TRL's names; the mean of ``loss`` over a step is the step's loss."""
        ...


class Task(Protocol):
    """Rows and their loss."""

    @property
    def digest(self) -> str:
        """sha256 of everything in the rows that training can see."""
        ...

    @property
    def num_rows(self) -> int: ...

    def num_tokens(self, row: int) -> int:
        """Tokens that the row takes in a micro-batch."""
        ...

    def num_positions(self, row: int) -> int:
        """The longest sequence of the row."""
        ...

    def line(self, row: int) -> int:
        """Where the row is in its file."""
        ...

    def pack(self, rows: Sequence[int], device: torch.device) -> PackedBatch: ...

    def step_loss(self, rows: Sequence[int]) -> StepLoss:
        """The loss of a step over ``rows``, however they are divided into micro-batches."""
        ...


class SupervisedTask:
    """Weighted cross-entropy over the tokens of examples."""

    def __init__(self, examples: Rows[Example]) -> None:
        self._lengths, self._lines = array("q"), array("q")
        for example in examples:
            self._lengths.append(len(example.ids))
            self._lines.append(example.line)
            if not any(example.weights):
                raise InvalidTrainingData(
                    f"line {example.line} trains no token: every weight is 0; leave it out, or "
                    "give its answers a weight"
                )
        self._examples = examples

    @property
    def digest(self) -> str:
        return digest_rows((np.array(e.ids), np.array(e.weights)) for e in self._examples)

    @property
    def num_rows(self) -> int:
        return len(self._examples)

    def num_tokens(self, row: int) -> int:
        return self._lengths[row]

    def num_positions(self, row: int) -> int:
        return self.num_tokens(row)

    def line(self, row: int) -> int:
        return self._lines[row]

    def pack(self, rows: Sequence[int], device: torch.device) -> PackedBatch:
        packer = Packer()
        for row in rows:
            packer.add_example(row, self._examples[row])
        return packer.pack(device)

    def step_loss(self, rows: Sequence[int]) -> "SupervisedLoss":
        return SupervisedLoss(sum(sum(self._examples[row].weights) for row in rows))


class SupervisedLoss:
    """Negative log-likelihood per unit of weight in the whole step: micro-batches do not matter."""

    def __init__(self, total_weight: float) -> None:
        self._total = total_weight

    def of(self, batch: PackedBatch) -> Callable[[Tensor], Tensor]:
        return lambda log_probs: -(batch.weights * log_probs).sum() / self._total

    def tally(self, batch: PackedBatch, scores: TokenScores) -> Tally:
        tally = Tally()
        weight = float(batch.weights.sum())
        tally.add("loss", -float((batch.weights * scores.log_probs).sum()), weight)
        tally.add("mean_token_accuracy", float((batch.weights * scores.is_top).sum()), weight)
        tally.add("entropy", float((batch.weights * scores.entropies).sum()), weight)
        return tally


def digest_rows(rows: Iterable[tuple[np.ndarray, ...]]) -> str:
    """sha256 of rows of arrays, each with its length."""
    total = hashlib.sha256()
    for row in rows:
        for part in row:
            total.update(len(part).to_bytes(8, "little"))
            total.update(np.ascontiguousarray(part).tobytes())
    return total.hexdigest()
