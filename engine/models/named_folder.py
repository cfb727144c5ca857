"""A folder and what its user calls it. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class NamedFolder:
    """``name`` is a hub id, a path or an adapter's name: for reports and messages."""

    name: str
    folder: Path
