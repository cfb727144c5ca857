"""The part of reading calls that all families share: from content to calls and back."""

import secrets
import string
from collections.abc import Callable
from enum import Enum, auto

from .call import CallDelta, Reading
from .call_object import CallObject


class _Place(Enum):
    CONTENT = auto()
    BETWEEN = auto()
    OBJECT = auto()


def long_id() -> str:
    return f"call_{secrets.token_hex(12)}"


class MarkedReader:
    """Objects follow ``opening`` in the text until ``closing``, separated by ``separators``.

    An answer that ``begins_inside`` may begin with an object without the mark. White space before
    a mark is no content, and no part of a mark is ever given out.
    """

    def __init__(
        self,
        opening: str,
        closing: str,
        *,
        separators: str = "",
        begins_inside: bool = False,
        max_calls: int | None = None,
        make_id: Callable[[], str] = long_id,
    ) -> None:
        self._opening = opening
        self._closing = closing
        self._marks = [mark for mark in (opening, closing) if mark]
        self._separators = separators
        self._place = _Place.BETWEEN if begins_inside else _Place.CONTENT
        self._max_calls = max_calls
        self._make_id = make_id
        self._held = ""
        self._object = CallObject()
        self._num_calls = 0
        self._is_inside = False
        self._is_announced = False

    def push(self, text: str) -> Reading:
        reading = Reading()
        self._held += text
        while self._held and self._advance(reading):
            pass
        return reading

    def finish(self) -> Reading:
        reading = Reading()
        if self._place is _Place.OBJECT and not self._is_announced:
            reading.content = self._object.raw
        reading.content += self._held
        self._held = ""
        return reading

    def _advance(self, reading: Reading) -> bool:
        """Read on; whether more of what is held can be read at once."""
        if self._place is _Place.CONTENT:
            return self._read_content(reading)
        if self._place is _Place.BETWEEN:
            return self._read_between(reading)
        return self._read_object(reading)

    def _read_content(self, reading: Reading) -> bool:
        place = self._held.find(self._opening)
        if place >= 0:
            reading.content += self._held[:place].rstrip()
            self._held = self._held[place + len(self._opening) :]
            self._place = _Place.BETWEEN
            return True
        settled = self._settled(self._opening)
        reading.content += self._held[:settled]
        self._held = self._held[settled:]
        return False

    def _settled(self, mark: str) -> int:
        """How much of what is held can be neither white space before a mark nor a part of it."""
        held = self._held
        for size in range(min(len(mark), len(held)), -1, -1):
            if mark.startswith(held[len(held) - size :]):
                return len(held[: len(held) - size].rstrip())
        return len(held)

    def _read_between(self, reading: Reading) -> bool:
        held = self._held.lstrip()
        for rest in (held, held.lstrip(self._separators + string.whitespace)):
            if rest.startswith("{"):
                self._begin(rest)
                return True
            if mark := next((mark for mark in self._marks if rest.startswith(mark)), None):
                self._held = rest.removeprefix(mark)
                is_over = mark == self._closing
                self._place = _Place.CONTENT if is_over else _Place.BETWEEN
                return True
            if not rest or any(mark.startswith(rest) for mark in self._marks):
                return False
        return self._read_other(rest)

    def _read_other(self, held: str) -> bool:
        """Go on at something that is neither an object nor a mark."""
        self._place = _Place.CONTENT
        return True

    def _begin(self, held: str, *, before: str = "") -> None:
        """Read an object in ``held``, which stands inside of another after ``before``."""
        self._object = CallObject()
        for char in before:
            self._object.feed(char)
        self._is_inside = bool(before)
        self._is_announced = False
        self._held = held
        self._place = _Place.OBJECT

    def _read_object(self, reading: Reading) -> bool:
        for place, char in enumerate(self._held):
            settled = self._object.feed(char)
            if self._is_inside and self._object.depth == 1:
                settled += self._object.feed("}")
            if self._object.is_broken and not self._is_announced:
                reading.content += self._object.raw
                self._leave(place, _Place.CONTENT)
                return True
            self._report(reading, settled)
            if self._object.is_done:
                self._leave(place, _Place.BETWEEN)
                return True
        self._held = ""
        return False

    def _leave(self, place: int, following: _Place) -> None:
        self._held = self._held[place + 1 :]
        self._place = following

    def _report(self, reading: Reading, arguments: str) -> None:
        name = self._object.name
        if name is not None and not self._is_announced:
            self._is_announced = True
            self._num_calls += 1
            self._add(reading, CallDelta(self._num_calls - 1, "", self._make_id(), name))
        if arguments:
            self._add(reading, CallDelta(self._num_calls - 1, arguments))

    def _add(self, reading: Reading, delta: CallDelta) -> None:
        if self._max_calls is not None and delta.index >= self._max_calls:
            return
        last = reading.calls[-1] if reading.calls else None
        if last and last.index == delta.index and delta.id is None:
            # One delta per call and piece of text, not one per character.
            text = last.arguments + delta.arguments
            reading.calls[-1] = CallDelta(last.index, text, last.id, last.name)
        else:
            reading.calls.append(delta)
