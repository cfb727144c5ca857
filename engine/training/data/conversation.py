"""One token sequence for all answers of a conversation, or several where they cannot share one.

A later turn may show an earlier one in other words, as templates do that strip thoughts from the
history, or in other tokens. Where the sequence up to one answer begins the sequence up to the next,
the two are one; where it does not, the earlier answer keeps a sequence of its own. So every answer
is learnt after the prompt that serving would send for it, whatever the template does.
"""

from dataclasses import dataclass

from .renderer import Renderer
from .row import ChatRow


@dataclass(frozen=True, slots=True)
class Span:
    """An answer: the tokens from ``start`` to before ``end``, learnt or only read."""

    start: int
    end: int
    is_trained: bool


@dataclass(frozen=True, slots=True)
class Conversation:
    """Token ids, and the answers in them in order."""

    ids: list[int]
    spans: tuple[Span, ...]

    @property
    def is_trained(self) -> bool:
        return any(span.is_trained for span in self.spans)


def render_conversations(
    row: ChatRow, renderer: Renderer, *, with_untrained: bool = False
) -> list[Conversation]:
    """The sequences of a row in the order of their last answers. Raises ``RowRejected``.

    Answers that are not trained have spans only ``with_untrained``; a sequence may then consist of
    such answers alone.
    """
    found: list[Conversation] = []
    for place, is_trained in enumerate(row.is_trained):
        is_answer = row.messages[place]["role"] == "assistant" and place > 0
        if not is_trained and not (with_untrained and is_answer):
            continue
        answer = renderer.chat(row.messages[: place + 1])
        ids = answer.prompt + answer.tokens
        spans = (Span(len(answer.prompt), len(ids), is_trained),)
        if found and ids[: len(found[-1].ids)] == found[-1].ids:
            spans = (*found.pop().spans, *spans)
        found.append(Conversation(ids, spans))
    return found
