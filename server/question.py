"""A checked request body with what its route knows about it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .answer_shape import AnswerShape
from .schemas.sampling import SamplingBody
from .schemas.structure import Structure


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A checked body with what its route knows about it.

    ``max_tokens`` is what the client asked for, else ``default_max_tokens`` or all that fits.
    ``structure`` goes before what the body asks for. ``keeps_special_tokens`` where calls of tools
    are told by them. ``echo`` gives the text of the prompt at a place, for answers that begin with
    it.
    """

    body: SamplingBody
    shape: AnswerShape
    tokenize: Callable[..., Sequence[Sequence[int]]]
    is_large: bool
    max_tokens: int | None
    default_max_tokens: int | None = None
    structure: Structure | None = None
    keeps_special_tokens: bool = False
    echo: Callable[[int, Sequence[int]], str] | None = None
