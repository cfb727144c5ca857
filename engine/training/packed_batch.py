"""Sequences laid one after another without padding, and which of their tokens are predicted."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .example import Example, Preference, Rating


@dataclass(frozen=True, slots=True)
class Span:
    """Rows ``[start, stop)`` of one sequence; they see ``prefix`` rows, which come first in
    position, and their own earlier rows, and nothing else."""

    start: int
    stop: int
    prefix: tuple[int, int] = (0, 0)

    @property
    def first_position(self) -> int:
        return self.prefix[1] - self.prefix[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """One micro-batch on the device; P predictions, each of one token from one row.

    ``sequences`` numbers the sequence of each prediction: one per example or rating, and two per
    preference, chosen then rejected. ``rows`` are the places of the packed rows in the data.
    """

    rows: tuple[int, ...]
    spans: tuple[Span, ...]
    ids: Tensor  # int64 [T]
    positions: Tensor  # int64 [T]
    sources: Tensor  # int64 [P]
    targets: Tensor  # int64 [P]
    weights: Tensor  # float32 [P]
    sequences: Tensor  # int64 [P]
    num_sequences: int

    @property
    def num_tokens(self) -> int:
        return self.ids.shape[0]

    @property
    def num_predictions(self) -> int:
        return self.sources.shape[0]


class Packer:
    """Collects rows, then makes the batch."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._spans: list[Span] = []
        self._ids: list[int] = []
        self._positions: list[int] = []
        self._predictions: list[tuple[int, int, float, int]] = []
        self._num_sequences = 0

    def add_example(self, row: int, example: Example) -> None:
        self._rows.append(row)
        span = self._append(example.ids)
        for place, weight in enumerate(example.weights):
            if weight:
                self._predict(span.start + place - 1, example.ids[place], weight)
        self._num_sequences += 1

    def add_preference(self, row: int, preference: Preference) -> None:
        """The prompt once, then both completions; the second sees the prompt and not the first."""
        self._rows.append(row)
        prompt = len(preference.prompt)
        whole = self._append((*preference.prompt, *preference.chosen))
        shared = (whole.start, whole.start + prompt)
        self._complete(shared[1] - 1, shared[1], preference.chosen)
        rejected = self._append(preference.rejected, prefix=shared)
        self._complete(shared[1] - 1, rejected.start, preference.rejected)

    def add_rating(self, row: int, rating: Rating) -> None:
        self._rows.append(row)
        span = self._append((*rating.prompt, *rating.completion))
        start = span.start + len(rating.prompt)
        self._complete(start - 1, start, rating.completion)

    def pack(self, device: torch.device) -> PackedBatch:
        sources, targets, weights, sequences = (
            zip(*self._predictions, strict=True) if self._predictions else ((), (), (), ())
        )

        def integers(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device)

        return PackedBatch(
            rows=tuple(self._rows),
            spans=tuple(self._spans),
            ids=integers(self._ids),
            positions=integers(self._positions),
            sources=integers(sources),
            targets=integers(targets),
            weights=torch.tensor(weights, dtype=torch.float32, device=device),
            sequences=integers(sequences),
            num_sequences=self._num_sequences,
        )

    def _append(self, ids: Sequence[int], *, prefix: tuple[int, int] = (0, 0)) -> Span:
        start = len(self._ids)
        span = Span(start, start + len(ids), prefix)
        self._ids += ids
        self._positions += range(span.first_position, span.first_position + len(ids))
        self._spans.append(span)
        return span

    def _complete(self, last_prompt_row: int, start: int, completion: Sequence[int]) -> None:
        for place, token in enumerate(completion):
            source = start + place - 1 if place else last_prompt_row
            self._predict(source, token, 1.0)
        self._num_sequences += 1

    def _predict(self, source: int, target: int, weight: float) -> None:
        self._predictions.append((source, target, weight, self._num_sequences))


def sequence_sums(batch: PackedBatch, log_probs: Tensor) -> Tensor:
    """Log-probabilities [P] summed by sequence, [num_sequences].

    Summed sequence by sequence: atomic adds would make the order, and the bits, depend on timing.
    """
    lengths = torch.bincount(batch.sequences, minlength=batch.num_sequences).tolist()
    return torch.stack([part.sum() for part in log_probs.split(lengths)])
