"""Settings as they are written: flags, environment variables and config keys are texts."""

from pathlib import Path

from multiflora.engine.training.gate.endpoint import check_url
from multiflora.engine.training.jobs.tracking.availability import read_sinks
from multiflora.engine.training.jobs.tracking.message import SinkName

from .hub_door import check_pattern


def parse_bool(text: str) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in words:
        raise ValueError(f"{text!r} is neither true nor false")
    return words[text.lower()]


def parse_int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number") from None


def parse_float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None


def parse_path(text: str) -> Path:
    return Path(text).expanduser()


def parse_patterns(text: str) -> tuple[str, ...]:
    return tuple(check_pattern(item.strip()) for item in text.split(",") if item.strip())


def parse_judges(text: str) -> tuple[tuple[str, str], ...]:
    """Read ``NAME=URL`` with commas between. Raises ``ValueError``."""
    found = {}
    for item in filter(None, map(str.strip, text.split(","))):
        name, _, url = item.partition("=")
        if not name.strip():
            raise ValueError(f"{item!r} is not NAME=URL")
        found[name.strip()] = check_url(url.strip())
    return tuple(found.items())


def parse_sinks(text: str) -> tuple[SinkName, ...]:
    return read_sinks([item.strip() for item in text.split(",") if item.strip()])
