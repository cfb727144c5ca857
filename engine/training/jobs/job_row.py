"""A job as a row of the database."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from .job import Job, JobError, JobWish

COLUMNS: Final = (
    "id, status, wish, name, created, start, settings, is_paused, is_sealed, step, num_steps, "
    "trained_tokens, digest, verdict, error, started, finished, tenant"
)
_JSON: Final[Mapping[str, Any]] = {
    "wish": JobWish,
    "settings": dict[str, Any],
    "verdict": dict[str, Any],
    "error": JobError,
}


def job_of(row: Sequence[Any]) -> Job:
    """The job of what was selected as ``COLUMNS``."""
    values: dict[str, Any] = dict(zip(COLUMNS.split(", "), row, strict=True))
    for name, kind in _JSON.items():
        if values[name] is not None:
            values[name] = msgspec.json.decode(values[name], type=kind)
    for name in ("is_paused", "is_sealed"):
        values[name] = bool(values[name])
    return Job(**values)
