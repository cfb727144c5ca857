"""A checked request body with what its route knows about it."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel

from .answer_shape import AnswerShape
from .generation import Delta
from .schemas.sampling import SamplingBody
from .schemas.structure import Structure


class EventWriter(Protocol):
    """Writes one streamed answer."""

    def events(self, first: Delta, rest: AsyncIterator[Delta]) -> AsyncGenerator[bytes]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A checked body with what its route knows about it.

    ``max_tokens`` is what the client asked for, else ``default_max_tokens`` or all that fits.
    ``structure`` goes before what the body asks for. ``keeps_special_tokens`` where calls of tools
    are told by them. ``echo`` gives the text of the prompt at a place, for answers that begin with
    it. ``is_chat`` where ``tokenize`` needs the renderer of the model that answers. ``make_writer``
    writes streams that are not those of chunks. ``given`` is what the client
    sent where ``body`` was made of it.
    """

    body: SamplingBody
    shape: AnswerShape
    tokenize: Callable[..., Awaitable[Sequence[Sequence[int]]]]
    max_tokens: int | None
    default_max_tokens: int | None = None
    is_chat: bool = False
    structure: Structure | None = None
    keeps_special_tokens: bool = False
    make_writer: Callable[..., EventWriter] | None = None
    given: BaseModel | None = None
    echo: Callable[[int, Sequence[int]], str] | None = None
