"""Which versions are wanted in memory, by whom, and in what order."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final

# Waiting requests whose versions may be brought to the device before they are admitted.
_LOOKAHEAD: Final = 8
# Waiting requests whose versions are protected and read ahead; beyond it the order is too unsure.
_HORIZON: Final = 64


class WishList:
    """Requests first, in the order of their turns; then pins; then loads that were asked for.

    A version that a request waits for is never evicted in favour of a later one's: whatever came
    into memory for the first in line is still there when its turn comes.
    """

    def __init__(self) -> None:
        self.pins: dict[str, None] = {}
        self.loads: dict[str, None] = {}
        self._turns: dict[str, int] = {}

    def replace(self, groups: Iterable[Sequence[str]]) -> None:
        """Take in the versions of the waiting requests, the next to be admitted first."""
        turns: dict[str, int] = {}
        for turn, group in enumerate(groups):
            if turn >= _HORIZON:
                break
            for digest in group:
                turns.setdefault(digest, turn)
        self._turns = turns

    def add(self, digest: str) -> bool:
        """A request needs ``digest``; False if that is known, or too many come before it."""
        is_new = digest not in self._turns and len(self._turns) < _HORIZON
        if is_new:
            self._turns[digest] = len(self._turns)
        return is_new

    def serve(self, digest: str) -> None:
        """A request got ``digest``; whoever else waits for it says so again."""
        self._turns.pop(digest, None)

    def has(self, digest: str) -> bool:
        return digest in self._turns or digest in self.pins or digest in self.loads

    def ordered(self) -> Iterator[str]:
        return iter({**self._turns, **self.pins, **self.loads})

    def first(self) -> list[str]:
        return [digest for digest, turn in self._turns.items() if turn < _LOOKAHEAD]

    def keep(self, digest: str, *, apart_from: Collection[str] = ()) -> set[str]:
        """Versions that must not make room for ``digest``."""
        turn = self._turns.get(digest)
        if turn is None:
            # A pin or a load that was asked for waits for requests; a pin on the device needs none.
            before = set(self._turns)
        else:
            before = {other for other, its_turn in self._turns.items() if its_turn <= turn}
        return (before | set(self.pins)) - {digest} - set(apart_from)
