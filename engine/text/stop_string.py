"""Finds stop strings in text that arrives in pieces."""

from collections.abc import Sequence


class StopStringMatcher:
    """Lets text through up to the first stop string, and never a part of one.

    The stop string that is complete first wins, so the result does not depend on how the text was
    cut into pieces; of several that end together, the longest counts. With ``includes`` it is let
    through too.
    """

    def __init__(self, stops: Sequence[str], *, includes: bool = False) -> None:
        assert all(stops), "an empty stop string matches everywhere"
        self._stops = tuple(stops)
        self._first_chars = frozenset(stop[0] for stop in stops)
        self._longest = max(map(len, stops), default=0)
        self._includes = includes
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Take text; return what can no longer be part of a stop string."""
        if not self._stops:
            return text
        if self.matched is not None:
            return ""
        self._held += text
        if (match := self._first_match()) is not None:
            end, self.matched = match
            return self._release(end if self._includes else end - len(self.matched), rest="")
        start = self._start_of_partial_match()
        return self._release(start, rest=self._held[start:])

    def finish(self) -> str:
        """Return the text held back, which turned out to be no stop string."""
        return self._release(len(self._held), rest="")

    def _first_match(self) -> tuple[int, str] | None:
        found = ((self._held.find(stop), stop) for stop in self._stops)
        ends = [(start + len(stop), stop) for start, stop in found if start >= 0]
        return min(ends, key=lambda match: (match[0], -len(match[1])), default=None)

    def _start_of_partial_match(self) -> int:
        held = self._held
        for start in range(max(0, len(held) - self._longest + 1), len(held)):
            if held[start] in self._first_chars and self._is_beginning(held[start:]):
                return start
        return len(held)

    def _is_beginning(self, text: str) -> bool:
        return any(stop.startswith(text) for stop in self._stops)

    def _release(self, end: int, *, rest: str) -> str:
        released, self._held = self._held[:end], rest
        return released
