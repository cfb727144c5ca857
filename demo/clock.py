"""Keeps the time that each part of the demo took to train, in one file of the work folder."""

import json
from pathlib import Path


def record_seconds(work: Path, name: str, seconds: float) -> None:
    known = read_seconds(work)
    known[name] = round(seconds, 1)
    (work / "seconds.json").write_text(json.dumps(known))


def read_seconds(work: Path) -> dict[str, float]:
    path = work / "seconds.json"
    return json.loads(path.read_text()) if path.exists() else {}
