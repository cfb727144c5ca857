"""How many tokens still fit in a step."""

from .active_request import ActiveRequest


class StepBudget:
    """Counts down; a scored token needs a row of logits, of which there is memory for fewer."""

    def __init__(self, num_tokens: int, num_scored: int) -> None:
        self.num_tokens = num_tokens
        self._num_scored = num_scored

    def has_room(self, request: ActiveRequest) -> bool:
        """Whether at least one token of ``request`` fits, wherever it begins."""
        return self.num_tokens > 0 and (self._num_scored > 0 or not request.scores_prompt)

    def offer(self, request: ActiveRequest) -> int:
        """How many of the pending tokens fit."""
        start = request.num_computed
        count = min(request.num_pending, self.num_tokens)
        scored = request.unscored(start, start + count)
        if len(scored) <= self._num_scored:
            return count
        return scored.start + self._num_scored - start

    def take(self, request: ActiveRequest, count: int) -> None:
        start = request.num_computed
        self.num_tokens -= count
        self._num_scored -= len(request.unscored(start, start + count))
