"""Adapters that an operator names: a name and a folder for each."""

from dataclasses import dataclass
from pathlib import Path

from multiflora.adapters.name import check_name


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """An adapter to publish at the start: its name and its folder."""

    name: str
    path: Path


def parse_adapter(text: str) -> AdapterSource:
    """Read ``NAME=PATH``. Raises ``ValueError``."""
    name, separator, path = text.partition("=")
    if not separator or not name.strip() or not path.strip():
        raise ValueError(f"{text!r} is not NAME=PATH")
    check_name(name.strip())
    return AdapterSource(name.strip(), Path(path.strip()).expanduser())


def parse_adapters(value: object) -> tuple[AdapterSource, ...]:
    """Read a mapping, a list of ``NAME=PATH`` or one text with commas."""
    if isinstance(value, dict):
        items = [f"{name}={path}" for name, path in value.items()]
    elif isinstance(value, list):
        items = [str(item) for item in value]
    else:
        items = [item for item in str(value).split(",") if item.strip()]
    return tuple(parse_adapter(item) for item in items)
