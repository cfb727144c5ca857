"""Token counts of one request."""

from collections.abc import Sequence
from typing import Any

from .generation import Delta


class UsageCount:
    """Adds up deltas; a prompt that has several choices counts once."""

    def __init__(self, prompt_lengths: Sequence[int], *, num_choices: int) -> None:
        self._prompt_tokens = sum(prompt_lengths)
        self._num_choices = num_choices
        self._generated: dict[int, int] = {}
        self._cached: dict[int, int] = {}

    def add(self, delta: Delta) -> None:
        self._generated[delta.index] = delta.num_tokens
        if delta.index % self._num_choices == 0:
            self._cached[delta.index] = max(delta.cached_tokens, self._cached.get(delta.index, 0))

    @property
    def num_generated(self) -> int:
        """Tokens of all answers so far."""
        return sum(self._generated.values())

    def as_json(self) -> dict[str, Any]:
        generated = self.num_generated
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": self._prompt_tokens + generated,
            "prompt_tokens_details": {"cached_tokens": sum(self._cached.values())},
        }
