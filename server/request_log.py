"""Log lines that can be given away: with the request's id, without keys, paths or values.

What a client sent, or what an exception says of it, is on no line unless ``--log-level debug``.
"""

import logging
import re
import traceback
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Final

request_id: ContextVar[str] = ContextVar("request_id", default="-")

_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s [%(request_id)s]: %(message)s"
_KEY: Final = re.compile(r"\b(mf-[0-9a-f]{12})-[A-Za-z0-9_-]{20,}")
_MAX_CHARS: Final = 2000
_MAX_FRAMES: Final = 6
_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class LogFormatter(logging.Formatter):
    """One line per record, whatever is in it; exceptions as their kind and where they came from."""

    def __init__(self, *, shows_values: bool = False) -> None:
        super().__init__(_FORMAT)
        self._shows_values = shows_values

    def format(self, record: logging.LogRecord) -> str:
        record.request_id = request_id.get()
        text = _KEY.sub(r"\1-***", super().format(record))
        if self._shows_values:
            return text
        text = text.replace("\n", " | ")
        return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text[:_MAX_CHARS])

    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802, logging's own name
        """The chain of places, innermost last, without the exception's text."""
        if self._shows_values:
            return super().formatException(ei)
        frames = traceback.extract_tb(ei[2])[-_MAX_FRAMES:]
        places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames]
        kind = ei[0].__name__ if ei[0] else "None"
        return f"{kind} at {' > '.join(places)}"


def configure_logging(level: str) -> None:
    """Log to stderr; values are shown at ``debug`` only."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter(shows_values=level == "debug"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
