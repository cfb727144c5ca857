"""Which rows each optimizer step takes, and how they fill micro-batches."""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

from .config import BatchSettings
from .randomness import shuffled


@dataclass(frozen=True, slots=True)
class StepPlan:
    """A pure function from a step's number to its rows: a step is all the data cursor there is."""

    num_rows: int
    batch: BatchSettings
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return ceil(self.num_rows / self.batch.batch_size)

    @property
    def num_steps(self) -> int:
        steps = self.steps_per_epoch * self.batch.num_epochs
        return steps if self.batch.max_steps is None else min(steps, self.batch.max_steps)

    def rows(self, step: int) -> list[int]:
        """The rows of ``step``, from 0; the last step of an epoch may have fewer."""
        epoch, place = divmod(step, self.steps_per_epoch)
        start = place * self.batch.batch_size
        stop = min(start + self.batch.batch_size, self.num_rows)
        if not self.batch.shuffle:
            return list(range(start, stop))
        return _epoch_order(self.num_rows, self.seed, epoch)[start:stop]


@lru_cache(maxsize=2)
def _epoch_order(num_rows: int, seed: int, epoch: int) -> list[int]:
    """Kept for the steps of the epoch: shuffling a million rows takes most of a second."""
    return shuffled(num_rows, seed, "epoch", epoch)


def fill_micro_batches(
    rows: Sequence[int], num_tokens: Callable[[int], int], budget: int
) -> list[list[int]]:
    """Best fit, longest first: few micro-batches of at most ``budget`` tokens each.

    Ties go to the earlier row and the earlier micro-batch, so that equal input gives equal output.
    """
    filled: list[list[int]] = []
    open_by_room: list[tuple[int, int]] = []  # room and place, in order
    for row in sorted(rows, key=lambda row: -num_tokens(row)):
        size = num_tokens(row)
        assert size <= budget
        fitting = bisect_left(open_by_room, (size, 0))
        if fitting < len(open_by_room):
            room, place = open_by_room.pop(fitting)
        else:
            room, place = budget, len(filled)
            filled.append([])
        filled[place].append(row)
        insort(open_by_room, (room - size, place))
    return filled
