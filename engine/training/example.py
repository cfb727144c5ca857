"""What a trainer is fed: token ids, and how much each of them counts in the loss.

The data side (formats, templates, masks) makes these; the trainer knows nothing of text.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from .error import InvalidTrainingData


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


@dataclass(frozen=True, slots=True)
class Rating:
    """A prompt with one completion that was judged, good or bad, with no other to compare it with.

    Token ids; ``line`` as in ``Example``.
    """

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    is_desirable: bool
    line: int


Item: TypeAlias = Example | Preference | Rating


def check_tokens(rows: Iterable[Item], vocab_size: int) -> None:
    """Raise ``InvalidTrainingData`` for a token that the base does not know.

    A look-up with it would end more than its own job: on an accelerator, the whole engine.
    """
    for row in rows:
        ids = _ids(row)
        strange = max(ids, default=0)
        if strange >= vocab_size or min(ids, default=0) < 0:
            raise InvalidTrainingData(
                f"line {row.line} has the token {strange}, and the base knows {vocab_size}: its "
                "tokenizer belongs to another base, or the prepared data are damaged"
            )


def _ids(row: Item) -> tuple[int, ...]:
    match row:
        case Example():
            return row.ids
        case Preference():
            return row.prompt + row.chosen + row.rejected
        case Rating():
            return row.prompt + row.completion
