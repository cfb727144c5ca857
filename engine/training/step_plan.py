"""Which rows each optimizer step takes, and how they fill micro-batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
        order = (
            shuffled(self.num_rows, self.seed, "epoch", epoch)
            if self.batch.shuffle
            else list(range(self.num_rows))
        )
        start = place * self.batch.batch_size
        return order[start : start + self.batch.batch_size]


def fill_micro_batches(
    rows: Sequence[int], num_tokens: Callable[[int], int], budget: int
) -> list[list[int]]:
    """Best fit, longest first: few micro-batches of at most ``budget`` tokens each.

    Ties go to the earlier row and the earlier micro-batch, so that equal input gives equal output.
    """
    filled: list[list[int]] = []
    room: list[int] = []
    for row in sorted(rows, key=lambda row: -num_tokens(row)):
        size = num_tokens(row)
        assert size <= budget
        fitting = [place for place, left in enumerate(room) if left >= size]
        if fitting:
            best = min(fitting, key=lambda place: room[place])
            filled[best].append(row)
            room[best] -= size
        else:
            filled.append([row])
            room.append(budget - size)
    return filled
