"""From rows to what the trainer is fed: weights for every token, and nothing over the limit."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from ..example import Example, Preference, Rating
from .config import DataConfig
from .conversation import Conversation, render_conversations
from .problem import RowRejected
from .renderer import Answer, Renderer
from .row import (
    ChatPair,
    ChatRating,
    ChatRow,
    CompletionPair,
    CompletionRating,
    CompletionRow,
    Row,
    TextRow,
)


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """The sequences of one row; ``is_truncated`` if any token of it was cut off."""

    items: tuple[Example, ...] | tuple[Preference] | tuple[Rating]
    is_truncated: bool = False


class RowEncoder:
    """Encodes rows one at a time. Raises ``RowRejected`` for one that would teach nothing."""

    def __init__(self, renderer: Renderer, config: DataConfig) -> None:
        self._renderer = renderer
        self._config = config

    def encode(self, row: Row) -> EncodedRow:
        match row:
            case ChatRow():
                return self._chat(row)
            case CompletionRow():
                return self._completion(row)
            case TextRow():
                return self._text(row)
            case ChatPair():
                return self._pair(
                    self._renderer.chat((*row.messages, row.better)),
                    self._renderer.chat((*row.messages, row.worse)),
                    row.line,
                )
            case CompletionPair():
                return self._pair(
                    self._renderer.completion(row.prompt, row.chosen),
                    self._renderer.completion(row.prompt, row.rejected),
                    row.line,
                )
            case ChatRating():
                answer = self._renderer.chat((*row.messages, row.answer))
                return self._rating(answer, row)
            case CompletionRating():
                return self._rating(self._renderer.completion(row.prompt, row.completion), row)

    def _chat(self, row: ChatRow) -> EncodedRow:
        has_prompt_loss = self._config.prompt_loss_weight > 0
        found = render_conversations(row, self._renderer, with_untrained=has_prompt_loss)
        conversations = [each for each in found if each.is_trained]
        if has_prompt_loss and len(conversations) < len(found):
            raise RowRejected(
                "lost_weight",
                "the chat template shows an answer of weight 0 in other words later on, so it "
                "cannot be left out of prompt_loss_weight; set that to 0, or drop the answer",
            )
        examples, read = [], []
        for each in conversations:
            examples.append(self._example(each, _num_common(read, each.ids), row.line))
            read = each.ids
        return self._cut(examples)

    def _completion(self, row: CompletionRow) -> EncodedRow:
        answer = self._renderer.completion(row.prompt, row.completion)
        num_asked = len(answer.prompt)
        ids = (*answer.prompt, *answer.tokens)
        asked = [self._config.prompt_loss_weight] * num_asked
        return self._cut([_example(ids, [*asked, *[1.0] * len(answer.tokens)], row.line)])

    def _text(self, row: TextRow) -> EncodedRow:
        """Long texts are cut into several examples: there is no answer whose prompt gets lost."""
        ids, length = self._renderer.text(row.text), self._config.max_length
        windows = [ids[start : start + length] for start in range(0, len(ids), length)]
        return EncodedRow(
            tuple(_example(each, [1.0] * len(each), row.line) for each in windows if len(each) > 1)
        )

    def _example(self, conversation: Conversation, num_read: int, line: int) -> Example:
        """The first ``num_read`` tokens were in the row's example before and count there."""
        asked = self._config.prompt_loss_weight
        num_tokens = len(conversation.ids)
        weights = [0.0] * num_read + [asked] * (num_tokens - num_read)
        for span in conversation.spans:
            weight = 1.0 if span.is_trained else 0.0
            weights[span.start : span.end] = [weight] * (span.end - span.start)
        return _example(conversation.ids, weights, line)

    def _cut(self, examples: Sequence[Example]) -> EncodedRow:
        length = self._config.max_length
        cut = [
            replace(each, ids=each.ids[:length], weights=each.weights[:length]) for each in examples
        ]
        kept = tuple(each for each in cut if 1.0 in each.weights)
        if not kept:
            raise self._cut_off(max(each.weights.index(1.0) for each in examples))
        return EncodedRow(kept, is_truncated=any(len(each.ids) > length for each in examples))

    def _pair(self, better: Answer, worse: Answer, line: int) -> EncodedRow:
        prompt, length = better.prompt, self._config.max_length
        if len(prompt) >= length:
            raise self._cut_off(len(prompt))
        room = length - len(prompt)
        chosen, rejected = tuple(better.tokens[:room]), tuple(worse.tokens[:room])
        if chosen == rejected:
            raise RowRejected(
                "identical_answers",
                "the two answers are the same"
                if better.tokens == worse.tokens
                else f"the two answers are the same up to max_length {length}; raise it",
            )
        item = Preference(tuple(prompt), chosen, rejected, line)
        return EncodedRow((item,), max(len(better.tokens), len(worse.tokens)) > room)

    def _rating(self, answer: Answer, row: ChatRating | CompletionRating) -> EncodedRow:
        room = self._config.max_length - len(answer.prompt)
        if room <= 0:
            raise self._cut_off(len(answer.prompt))
        kept = tuple(answer.tokens[:room])
        item = Rating(tuple(answer.prompt), kept, row.is_desirable, row.line)
        return EncodedRow((item,), is_truncated=len(answer.tokens) > room)

    def _cut_off(self, num_asked: int) -> RowRejected:
        return RowRejected(
            "answer_cut_off",
            f"the prompt has {num_asked} tokens, so nothing of the answer is within max_length "
            f"{self._config.max_length}; raise it, or shorten the prompt",
        )


def _example(ids: Sequence[int], weights: Sequence[float], line: int) -> Example:
    return Example(tuple(ids), (0.0, *weights[1:]), line)


def _num_common(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
