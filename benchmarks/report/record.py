"""Committed measurements: what every one says, which is the newest, and on what machine it was."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

from ..harness import RESULTS, ROOT

_FILE: Final = re.compile(r"(?P<name>.+)-(?P<time>\d{8}-\d{6})")
_MACHINE: Final = ("processor", "cores", "vector_units", "memory_gib", "accelerator")


@dataclass(frozen=True, slots=True)
class Record:
    """One run of one benchmark, as ``harness.save`` wrote it."""

    path: Path
    name: str
    measured_at: datetime
    figures: dict[str, Any]

    @property
    def file(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @property
    def machine(self) -> str:
        """Readable and the same for the same machine."""
        facts = self.figures["machine"]
        units = [unit.upper().replace("_", "-") for unit in facts["vector_units"]]
        core = f"{facts['cores']} cores of {facts['processor']}"
        return ", ".join([core, *units, *([facts["accelerator"]] if facts["accelerator"] else [])])

    @property
    def is_smoke(self) -> bool:
        """Proves that a script works and measures nothing."""
        arguments = self.figures.get("arguments")
        flags = (self.figures, arguments if isinstance(arguments, dict) else {})
        return self.name.endswith("-smoke") or any(found.get("smoke") for found in flags)


def read_record(path: Path) -> Record:
    """Read one file. Raises ``ValueError`` that names what the record does not say."""
    named = _FILE.fullmatch(path.stem)
    if named is None:
        raise ValueError(f"{path.name}: records are named NAME-YYYYMMDD-HHMMSS.json")
    figures = json.loads(path.read_text())
    missing = [
        key for key in ("benchmark", "command", "commit", "versions") if not figures.get(key)
    ]
    missing += [f"machine.{key}" for key in _MACHINE if key not in figures.get("machine", {})]
    if missing or "python" not in figures["versions"]:
        raise ValueError(f"{path.name} lacks {', '.join(missing) or 'versions.python'}")
    if figures["benchmark"] != named["name"]:
        raise ValueError(f"{path.name} is a record of {figures['benchmark']}; its name differs")
    measured_at = datetime.strptime(named["time"], "%Y%m%d-%H%M%S")
    return Record(path, named["name"], measured_at, figures)


def read_records(folder: Path = RESULTS) -> list[Record]:
    """All of them but smoke runs, the oldest first."""
    records = [read_record(path) for path in sorted(folder.glob("*.json"))]
    kept = [record for record in records if not record.is_smoke]
    return sorted(kept, key=lambda record: (record.measured_at, record.name))


def lookup(figures: Any, path: str | Sequence[str | Mapping[str, Any]]) -> Any:
    """What is at ``a.b.c`` in nested mappings; None where there is nothing.

    A sequence of keys may hold mappings: of a list, the first entry that has all of its items.
    """
    for key in path.split(".") if isinstance(path, str) else path:
        if isinstance(key, str):
            figures = figures.get(key) if isinstance(figures, dict) else None
        else:
            entries = figures if isinstance(figures, list) else []
            figures = next((entry for entry in entries if key.items() <= entry.items()), None)
    return figures


def newest(records: Iterable[Record], pattern: str, variant: str = "") -> list[Record]:
    """Of the records whose name matches, the last per machine and value at ``variant``.

    Values that differ in capitals alone are the same.
    """
    found: dict[tuple[str, str], Record] = {}
    for record in sorted(records, key=lambda record: record.measured_at):
        if fnmatch(record.name, pattern):
            of = json.dumps(lookup(record.figures, variant)).casefold() if variant else ""
            found[record.machine, of] = record
    return [found[key] for key in sorted(found)]


def the_newest(
    records: Sequence[Record], name: str, *, machine: str | None = "", **where: object
) -> Record:
    """The last record of ``name`` on the one machine whose name contains ``machine``.

    None for whichever machine measured last, where it does not matter. ``where`` narrows by figures
    or arguments of a name; a text has to begin so. Raises ``LookupError`` for none, or for several
    machines.
    """
    fitting = [
        record
        for record in records
        if (machine or "") in record.machine
        and all(_fits(record, key, wanted) for key, wanted in where.items())
    ]
    found = newest(fitting, name)
    if machine is None:
        found = sorted(found, key=lambda record: record.measured_at)[-1:]
    if len(found) != 1:
        which = " and ".join(record.machine for record in found) or "no machine"
        raise LookupError(f"{name} was measured on {which}; name one with machine=...")
    return found[0]


def _fits(record: Record, key: str, wanted: object) -> bool:
    found = record.figures.get(key, lookup(record.figures, f"arguments.{key}"))
    if isinstance(found, str) and isinstance(wanted, str):
        return found.startswith(wanted)
    return found == wanted
