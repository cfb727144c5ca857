"""What a trainer is fed: token ids, and how much each of them counts in the loss.

The data side (formats, templates, masks) makes these; the trainer knows nothing of text.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

Row = TypeVar("Row", covariant=True)


@dataclass(frozen=True, slots=True)
class Example:
    """One training sequence.

    ``weights[i]`` is the weight of predicting ``ids[i]`` from what precedes it: 0 for text that is
    only read, 1 for an answer, between for ``prompt_loss_weight``. The first token is never
    predicted, so ``weights[0]`` is 0. ``line`` is the row's line in its file, from 1.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    line: int

    def __post_init__(self) -> None:
        assert len(self.ids) == len(self.weights)
        assert not self.weights or self.weights[0] == 0.0


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt with a better and a worse completion, as token ids; ``line`` as in ``Example``."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    line: int


class Rows(Protocol[Row]):
    """Rows by number, made when they are asked for: a data set on the disk, or a list."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: int, /) -> Row: ...

    def __iter__(self) -> Iterator[Row]: ...
