"""``/v1/files``: what a form asks for, and the file object."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from multiflora.engine.errors import RequestRejected
from multiflora.engine.training.data.file_registry import StoredFile

BATCH: Final = "batch"
BATCH_OUTPUT: Final = "batch_output"
# What whoever may ask a model may keep without the scope for training.
BATCH_PURPOSES: Final = frozenset({BATCH, BATCH_OUTPUT})
PURPOSES: Final = ("fine-tune", BATCH)
_MIN_SECONDS, _MAX_SECONDS = 3600, 30 * 24 * 3600
_MAX_NAME_CHARS: Final = 255
_EXPIRY: Final = "expires_after"


@dataclass(frozen=True, slots=True)
class FileTerms:
    """What a file is for, and after how many seconds it goes by itself."""

    purpose: str
    expires_after: int | None


def file_terms(texts: Mapping[str, str]) -> FileTerms:
    """Read the texts of the form. Raises ``RequestRejected``."""
    purpose = texts.get("purpose", "")
    if purpose not in PURPOSES:
        raise RequestRejected(
            f"purpose is {purpose[:40]!r}; files are kept for {', '.join(PURPOSES)}",
            param="purpose",
        )
    return FileTerms(purpose, _expiry(texts))


def file_name(given: str) -> str:
    """The client's name for the file, without folders and what cannot be printed."""
    last = given.replace("\\", "/").rpartition("/")[2]
    return "".join(filter(str.isprintable, last)).strip()[:_MAX_NAME_CHARS] or "file"


def file_object(file: StoredFile) -> dict[str, Any]:
    """The file as the API shows it."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.num_bytes,
        "created_at": file.created,
        "expires_at": file.expires,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": file.status,
        "status_details": file.details,
    }


def _expiry(texts: Mapping[str, str]) -> int | None:
    anchor, seconds = texts.get(f"{_EXPIRY}[anchor]"), texts.get(f"{_EXPIRY}[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise RequestRejected("the anchor is created_at", param=f"{_EXPIRY}.anchor")
    number = int(seconds) if seconds and seconds.isdecimal() and len(seconds) < 10 else -1
    if not _MIN_SECONDS <= number <= _MAX_SECONDS:
        raise RequestRejected(
            f"seconds must be between {_MIN_SECONDS} and {_MAX_SECONDS}",
            param=f"{_EXPIRY}.seconds",
        )
    return number
