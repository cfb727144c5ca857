"""What a trainer is fed: token ids, and how much each of them counts in the loss.

The data side (formats, templates, masks) makes these; the trainer knows nothing of text.
"""

from collections.abc import Iterable
from dataclasses import dataclass

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


def check_tokens(rows: Iterable[Example | Preference], vocab_size: int) -> None:
    """Raise ``InvalidTrainingData`` for a token that the base does not know.

    A look-up with it would end more than its own job: on an accelerator, the whole engine.
    """
    for row in rows:
        ids = row.ids if isinstance(row, Example) else row.prompt + row.chosen + row.rejected
        lowest, highest = min(ids, default=0), max(ids, default=0)
        if lowest < 0 or highest >= vocab_size:
            strange = lowest if lowest < 0 else highest
            raise InvalidTrainingData(
                f"line {row.line} has the token {strange}, and the base knows {vocab_size}: its "
                "tokenizer belongs to another base, or the prepared data are damaged"
            )
