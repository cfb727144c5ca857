"""From the token events of one request to the text that a client reads."""

from collections.abc import Sequence

from ..request import FinishReason
from .detokenizer import Decoder, Detokenizer
from .stop_string import StopStringMatcher


class AnswerText:
    """Detokenizes one answer and cuts it at its stop strings.

    Text of the first ``min_tokens`` tokens is not searched. ``end_tokens`` are the ids that end an
    answer; one that did gives no text.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        stops: Sequence[str] = (),
        min_tokens: int = 0,
        end_tokens: frozenset[int] = frozenset(),
    ) -> None:
        self._detokenizer = Detokenizer(decoder)
        self._matcher = StopStringMatcher(stops)
        self._min_tokens = min_tokens
        self._end_tokens = end_tokens
        self.num_tokens = 0

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string was found: nothing that follows belongs to the answer."""
        return self._matcher.matched is not None

    def push(self, tokens: Sequence[int], finish_reason: FinishReason | None = None) -> str:
        """Take the tokens of one event; return the text they settle."""
        ends = finish_reason is FinishReason.STOP and bool(tokens)
        silent = 1 if ends and tokens[-1] in self._end_tokens else 0
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
        if self.num_tokens <= self._min_tokens:
            return text
        return self._matcher.push(text)

    def _finish(self) -> str:
        last = self._detokenizer.finish()
        if self.num_tokens > self._min_tokens:
            last = self._matcher.push(last)
        return last if self.is_stopped else last + self._matcher.finish()
