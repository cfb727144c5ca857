"""Markdown made of figures: a page's template, and texts in pages that are made of records.

A text in a page stands behind a comment that holds its template, so that whoever edits the page
sees both, and ``make report`` writes it again::

    <!-- figures
    {% set mix = newest("adapter-mix") %}
    Eight adapters keep {{ mix.ratios["ours adapters / ours base x8"] | fixed(2) }} of the speed.
    -->
    Eight adapters keep 0.85 of the speed.
    <!-- end of figures -->
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError

from .record import ROOT, Record, lookup, the_newest

MISSING: Final = "not measured"
_FOLDER: Final = Path(__file__).parent
_TEXT: Final = re.compile(
    r"^<!-- figures\n(?P<template>.*?)\n-->\n(?P<text>.*?)^<!-- end of figures -->$",
    re.DOTALL | re.MULTILINE,
)
_OPENING: Final = "<!-- figures\n"


def environment(records: Sequence[Record]) -> Environment:
    """What templates can use; a name that is not there is an error, never an empty place."""
    made = Environment(
        loader=FileSystemLoader(_FOLDER),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )

    def find(name: str, **where: Any) -> dict[str, Any]:
        return view(the_newest(records, name, **where))

    made.globals |= {"newest": find, "read": _read, "at": lookup}
    made.filters |= {"fixed": fixed, "percent": percent, "count": count}
    return made


def view(record: Record) -> dict[str, Any]:
    """A record's figures, and beside them what its file says."""
    return {**record.figures, "file": record.file, "machine_name": record.machine}


def fixed(value: float | None, digits: int) -> str:
    """A number with ``digits`` decimals; what is None was not measured."""
    return MISSING if value is None else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 0) -> str:
    return MISSING if value is None else f"{value:.{digits}%}"


def count(value: float | None) -> str:
    """A whole number with commas."""
    return MISSING if value is None else f"{value:,.0f}"


def _read(path: str) -> Any:
    return json.loads((ROOT / path).read_text())


def fill_page(page: str, records: Sequence[Record]) -> str:
    """``page`` with every text that is made of records written again.

    Raises ``ValueError`` for a template that asks for what no record has, or that does not end.
    """
    made = environment(records)

    def fill(found: re.Match[str]) -> str:
        template = found["template"]
        try:
            text = made.from_string(template).render().strip("\n")
        except (TemplateError, LookupError, TypeError) as error:
            raise ValueError(f"figures that begin with {template[:60]!r}: {error}") from error
        return f"{_OPENING}{template}\n-->\n{text}\n<!-- end of figures -->"

    if page.count(_OPENING) != len(_TEXT.findall(page)):
        raise ValueError("a text begins with '<!-- figures' and has no '<!-- end of figures -->'")
    return _TEXT.sub(fill, page)
