"""Where a job's files are: ``<data_dir>/jobs/<id>/``."""

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from multiflora.adapters import durable

_METRICS: Final = "metrics.jsonl"


@dataclass(frozen=True, slots=True)
class JobFolder:
    """``run`` is the trainer's; ``training`` and ``validation`` are prepared data sets."""

    path: Path

    @property
    def run(self) -> Path:
        return self.path / "run"

    @property
    def training(self) -> Path:
        return self.path / "training"

    @property
    def validation(self) -> Path:
        return self.path / "validation"

    @property
    def metrics(self) -> Path:
        """One JSON object per line under TRL's names, in the order in which they were measured."""
        return self.path / _METRICS

    def tracked(self, sink: str) -> Path:
        """What the sink keeps beside the job's own metrics."""
        return self.path / sink

    def make(self) -> None:
        durable.make_folder(self.path)

    def add_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append; for people and tools, so that a crash may lose the last lines of it."""
        lines = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
        if lines:
            with open(self.metrics, "ab") as file:
                file.write(lines)

    def clear(self) -> None:
        """Free what only a running job needs; metrics and pictures stay."""
        for part in (self.run, self.training, self.validation):
            shutil.rmtree(part, ignore_errors=True)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


class JobFolders:
    """All of a data directory."""

    def __init__(self, data_dir: Path) -> None:
        self._root = data_dir / "jobs"

    def __getitem__(self, job_id: str) -> JobFolder:
        return JobFolder(self._root / job_id)

    def present(self) -> list[str]:
        return sorted(os.listdir(self._root)) if self._root.is_dir() else []
