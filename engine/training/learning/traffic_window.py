"""Counts the requests of names whose canary is watched. All methods belong to one event loop."""

from dataclasses import dataclass, replace

from .traffic import Outcome, Traffic


@dataclass(slots=True)
class _Window:
    live: str
    canary: str
    traffic: Traffic


class TrafficWindows:
    """One window per name; requests of other names and versions are not counted."""

    def __init__(self) -> None:
        self._windows: dict[str, _Window] = {}

    def open(self, name: str, *, live: str, canary: str, traffic: Traffic) -> None:
        """Count from ``traffic`` on; a window that is open goes on as it is."""
        window = self._windows.get(name)
        if window is None or (window.live, window.canary) != (live, canary):
            self._windows[name] = _Window(live, canary, traffic)

    def close(self, name: str) -> None:
        self._windows.pop(name, None)

    def has(self, name: str, digest: str) -> bool:
        """Whether a request on this version is counted."""
        window = self._windows.get(name)
        return window is not None and digest in (window.live, window.canary)

    def add(self, name: str, digest: str, outcome: Outcome) -> None:
        """Nothing happens if the window was closed meanwhile."""
        window = self._windows.get(name)
        if window is None:
            return
        if digest == window.canary:
            arm = window.traffic.canary.plus(outcome)
            window.traffic = replace(window.traffic, canary=arm)
        elif digest == window.live:
            window.traffic = replace(window.traffic, live=window.traffic.live.plus(outcome))

    def traffic(self, name: str) -> Traffic:
        """What was counted so far; nothing for a name without a window."""
        window = self._windows.get(name)
        return Traffic() if window is None else window.traffic
