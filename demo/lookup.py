"""A template look-up: answers a question with the answer of the most similar training question.

It is the baseline that held-out questions must defeat; an adapter that only remembers its
training text could do no better.
"""

from collections import Counter
from collections.abc import Sequence


class Lookup:
    """Remembers (prompt, answer) pairs; similarity is the number of shared words by position."""

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self._answers = [answer for _, answer in pairs]
        self._rows_of: dict[tuple[int, str], list[int]] = {}
        for row, (prompt, _) in enumerate(pairs):
            for feature in _features(prompt):
                self._rows_of.setdefault(feature, []).append(row)

    def answer(self, prompt: str) -> str:
        votes: Counter[int] = Counter()
        for feature in _features(prompt):
            votes.update(self._rows_of.get(feature, ()))
        return self._answers[votes.most_common(1)[0][0]] if votes else ""


def _features(prompt: str) -> list[tuple[int, str]]:
    return list(enumerate(prompt.split()))
