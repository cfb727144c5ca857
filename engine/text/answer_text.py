"""From the token events of one request to the text that a client reads."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..request import FinishReason
from .detokenizer import Decoder, Detokenizer
from .stop_string import StopStringMatcher


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRules:
    """How an answer becomes text.

    ``stops`` cut it, but text of the first ``min_tokens`` tokens is not searched. ``end_tokens``
    are the ids that end an answer. What ended it gives text only with ``include_stop``, special
    tokens only without ``skip_special_tokens``.
    """

    stops: tuple[str, ...] = ()
    min_tokens: int = 0
    end_tokens: frozenset[int] = frozenset()
    include_stop: bool = False
    skip_special_tokens: bool = True


class AnswerText:
    """Detokenizes one answer and cuts it at its stop strings."""

    def __init__(self, decoder: Decoder, rules: TextRules | None = None) -> None:
        rules = rules or TextRules()
        self._rules = rules
        self._detokenizer = Detokenizer(decoder, skip_special_tokens=rules.skip_special_tokens)
        self._matcher = StopStringMatcher(rules.stops, includes=rules.include_stop)
        self.num_tokens = 0

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string was found: nothing that follows belongs to the answer."""
        return self._matcher.matched is not None

    def push(self, tokens: Sequence[int], finish_reason: FinishReason | None = None) -> str:
        """Take the tokens of one event; return the text they settle."""
        ends = finish_reason is FinishReason.STOP and bool(tokens) and not self._rules.include_stop
        silent = 1 if ends and tokens[-1] in self._rules.end_tokens else 0
        pieces = []
        for token in tokens[: len(tokens) - silent]:
            pieces.append(self._push_token(token))
            if self.is_stopped:
                return "".join(pieces)
        self.num_tokens += silent
        if finish_reason is not None:
            pieces.append(self._finish())
        return "".join(pieces)

    def _push_token(self, token: int) -> str:
        self.num_tokens += 1
        text = self._detokenizer.push(token)
        if self.num_tokens <= self._rules.min_tokens:
            return text
        return self._matcher.push(text)

    def _finish(self) -> str:
        last = self._detokenizer.finish()
        if self.num_tokens > self._rules.min_tokens:
            last = self._matcher.push(last)
        return last if self.is_stopped else last + self._matcher.finish()
