"""Runs the checks of one client and prints what came of each, as a line of JSON."""

import json
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[], Any]


def report(checks: Mapping[str, Check]) -> None:
    """A check fails by raising; the others go on."""
    for name, check in checks.items():
        problem = ""
        try:
            check()
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"[:500]
        print(json.dumps({"check": name, "problem": problem}), flush=True)


def expect(*, is_true: bool, what: str) -> None:
    """Raises ``AssertionError``; a bare assert says nothing outside pytest."""
    if not is_true:
        raise AssertionError(what)
