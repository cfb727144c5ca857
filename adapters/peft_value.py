"""Values of ``adapter_config.json``, checked one by one; every reader names the key it refuses."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from .error import AdapterRejected

_MAX_PATTERN = 512
# Far above any real rank; what a server accepts is the gate's limit.
_MAX_RANK = 1 << 16
# The regexes that PEFT builds around a pattern's text.
_KEY_FORM = r"(.*\.)?({})$"
LAYER_FORM = r".*\.{}\.(\d+)\."


def positive_int(value: Any, name: str) -> int:
    if type(value) is not int or not 1 <= value <= _MAX_RANK:
        raise AdapterRejected(
            "invalid_config",
            f"{name} is {value!r}; it must be a whole number from 1 to {_MAX_RANK}",
        )
    return value


def finite(value: Any, name: str) -> float:
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass
    raise AdapterRejected("invalid_config", f"{name} is {value!r}; it must be a finite number")


def flag(value: Any, name: str) -> bool:
    if value is not None and not isinstance(value, bool):
        raise AdapterRejected("invalid_config", f"{name} is {value!r}; it must be true or false")
    return bool(value)


def table(value: Any, name: str) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise AdapterRejected("invalid_config", f"{name} is {value!r}; it must be an object")
    return value or {}


def key_pattern(pattern: str, name: str) -> re.Pattern[str]:
    return re.compile(_KEY_FORM.format(_regex(pattern, name, form=_KEY_FORM)))


def names(value: Any, name: str) -> str | tuple[str, ...]:
    """Module names, or one regex over whole paths."""
    if isinstance(value, str):
        return _regex(value, name)
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise AdapterRejected("invalid_config", f"{name} is {value!r}; it must be a string or a list")


def matches(selected: str | tuple[str, ...], path: str) -> bool:
    """Whether PEFT takes ``path`` for one of the ``names`` that select modules."""
    if isinstance(selected, str):
        return re.fullmatch(selected, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in selected)


def layers(value: Any) -> tuple[int, ...] | None:
    if value is None or value == []:
        return None
    items = value if isinstance(value, list) else [value]
    if not all(type(item) is int for item in items):
        raise AdapterRejected(
            "invalid_config", f"layers_to_transform is {value!r}; it must be a number or a list"
        )
    return tuple(items)


def layer_patterns(value: Any) -> tuple[str, ...]:
    patterns = names(value or (), "layers_pattern")
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    for pattern in patterns:
        # PEFT reads the layer's number from group 1; a group before it would be read instead.
        if re.compile(_regex(pattern, "layers_pattern", form=LAYER_FORM)).groups:
            raise AdapterRejected(
                "invalid_config", f"layers_pattern {pattern!r} has a group; write (?:...)"
            )
    return patterns


def one_of(value: Any, name: str, choices: Iterable[str]) -> str:
    known = tuple(choices)
    if value not in known:
        raise AdapterRejected(
            "invalid_config", f"{name} is {value!r}; it must be one of {', '.join(known)}"
        )
    return value


def _regex(pattern: str, name: str, *, form: str = "{}") -> str:
    """Check ``pattern`` by itself and inside ``form``, where it is used."""
    if len(pattern) > _MAX_PATTERN:
        raise AdapterRejected(
            "invalid_config",
            f"a pattern in {name} has {len(pattern)} characters, over {_MAX_PATTERN}",
        )
    try:
        re.compile(pattern)
        re.compile(form.format(pattern))
    except (re.error, RecursionError, OverflowError) as error:
        raise AdapterRejected(
            "invalid_config", f"{name}: {pattern!r} is no regex: {error}"
        ) from error
    return pattern
