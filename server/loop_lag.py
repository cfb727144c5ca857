"""How long things wait for the event loop, as anything that blocks it makes them wait."""

import asyncio
from collections import deque
from typing import Final

_TICK_SECONDS: Final = 0.1
_NUM_TICKS: Final = 100


class LoopLag:
    """Looks ten times a second how late it is called; all methods belong to one event loop."""

    def __init__(self) -> None:
        self._late: deque[float] = deque(maxlen=_NUM_TICKS)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def seconds(self) -> float:
        """The longest wait of the last ten seconds; 0 before the first look."""
        return max(self._late, default=0.0)

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + _TICK_SECONDS
        self._timer = loop.call_at(due, self._tick, due)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self, due: float) -> None:
        self._late.append(max(0.0, asyncio.get_running_loop().time() - due))
        self.start()
