"""Log lines that can be given away: with the request's id, without keys, paths or values.

What a client sent, or what an exception says of it, is on no line unless ``--log-level debug``.
Both processes write them, as text or as JSON; a record's ``fields`` are pairs beside its message.
"""

import json
import logging
import os
import re
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal

LogFormat = Literal["text", "json"]
# What clients may call a request.
HARMLESS_ID: Final = r"^[A-Za-z0-9._:-]{1,128}$"
request_id: ContextVar[str] = ContextVar("request_id", default="-")

_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s [%(request_id)s]: %(message)s"
_KEY: Final = re.compile(r"\b(mf-[0-9a-f]{12})-[A-Za-z0-9_-]{20,}")
_MAX_CHARS: Final = 2000
_MAX_FRAMES: Final = 6
_LEVEL_VARIABLE: Final = "MULTIFLORA_LOG_LEVEL"
_FORMAT_VARIABLE: Final = "MULTIFLORA_LOG_FORMAT"
_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class LogFormatter(logging.Formatter):
    """One line per record, whatever is in it; exceptions as their kind and where they came from."""

    def __init__(self, *, shows_values: bool = False) -> None:
        super().__init__(_FORMAT)
        self._shows_values = shows_values

    def format(self, record: logging.LogRecord) -> str:
        record.request_id = request_id.get()
        pairs = "".join(f" {name}={value}" for name, value in _fields(record).items())
        text = _without_keys(super().format(record) + pairs)
        return text if self._shows_values else one_line(text)

    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802, logging's own name
        """The chain of places, innermost last, without the exception's text."""
        if self._shows_values:
            return super().formatException(ei)
        frames = traceback.extract_tb(ei[2])[-_MAX_FRAMES:]
        places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames]
        kind = ei[0].__name__ if ei[0] else "None"
        return f"{kind} at {' > '.join(places)}"


class JsonFormatter(LogFormatter):
    """The same as an object per line; ``time`` is in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        message = _without_keys(record.getMessage())
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "request_id": request_id.get(),
            "message": message if self._shows_values else one_line(message),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = _without_keys(self.formatException(record.exc_info))
        return json.dumps(line, default=str)


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    return getattr(record, "fields", {})


def _without_keys(text: str) -> str:
    return _KEY.sub(r"\1-***", text)


def one_line(text: str) -> str:
    """Without line breaks or anything that a terminal would obey."""
    text = text.replace("\n", " | ")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text[:_MAX_CHARS])


def configure_logging(level: str, form: LogFormat = "text") -> None:
    """Log to stderr, here and in processes started later; values are shown at ``debug`` only."""
    os.environ[_LEVEL_VARIABLE], os.environ[_FORMAT_VARIABLE] = level, form
    kind = JsonFormatter if form == "json" else LogFormatter
    handler = logging.StreamHandler()
    handler.setFormatter(kind(shows_values=level == "debug"))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def inherit_logging() -> None:
    """Log as the process does that started this one."""
    form = os.environ.get(_FORMAT_VARIABLE, "text")
    level = os.environ.get(_LEVEL_VARIABLE, "warning").lower()
    configure_logging(level, "json" if form == "json" else "text")
