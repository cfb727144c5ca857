"""``make report``: committed records become docs/benchmarks.md, its pictures and other figures."""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from . import plot
from .question import QUESTIONS, Aim, Question
from .record import ROOT, Record, lookup, newest, read_records
from .template import MISSING, environment, fill_page, view

PAGE: Final = ROOT / "docs" / "benchmarks.md"
GROUPS: Final = {
    "bench": "everything about this server that a CPU can answer",
    "bench-peers": "the same work done by others in the same run; installs each first, in an "
    "environment of its own",
    "bench-gpu": "what only a GPU can answer",
}


def main() -> None:
    records = read_records()
    pictures = [
        plot.draw(record)
        for _, answers in _answers(records)
        for record in answers
        if plot.picture_name(record)
    ]
    for stale in set(plot.PICTURES.glob("*.svg")) - set(pictures):
        stale.unlink()
    written = {PAGE: render(records)}
    written |= {path: fill_page(path.read_text(), records) for path in pages()}
    for path, text in written.items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"wrote {path.relative_to(ROOT)}", file=sys.stderr)


def pages() -> list[Path]:
    """Everything that may hold figures of records, but the report itself."""
    return [path for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))) if path != PAGE]


def render(records: Sequence[Record]) -> str:
    """docs/benchmarks.md."""
    answers = [
        {"question": question, "records": [_with_picture(record) for record in found]}
        for question, found in _answers(records)
    ]
    aims = [row for question, found in _answers(records) for row in _aims(question, found)]
    aims.sort(key=lambda row: _ORDER.index(row["verdict"]))
    page = environment(records).get_template("page.md.jinja")
    text = page.render(groups=GROUPS, answers=answers, aims=aims, units=plot.UNITS)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n"


def _answers(records: Sequence[Record]) -> Iterator[tuple[Question, list[Record]]]:
    for question in QUESTIONS:
        yield question, newest(records, question.pattern, question.variant)


def _with_picture(record: Record) -> dict[str, Any]:
    measured_at = record.measured_at.strftime("%Y-%m-%d %H:%M")
    return {**view(record), "measured_at": measured_at, "picture": _picture(record)}


def _picture(record: Record) -> str | None:
    """Relative to the page: what is drawn here, or what the benchmark left beside its record."""
    if name := plot.picture_name(record):
        return f"images/benchmarks/{name}"
    beside = record.path.with_suffix(".png")
    return f"../{beside.relative_to(ROOT).as_posix()}" if beside.exists() else None


_ORDER: Final = ("missed", "met", MISSING)


def _aims(question: Question, records: Sequence[Record]) -> Iterator[dict[str, Any]]:
    """A row for every aim and record that has its figure; one without if there is none."""
    for aim in question.aims:
        figures = [(aim.figure(record.figures), _where(question, record)) for record in records]
        known = [(figure, where) for figure, where in figures if figure is not None]
        for figure, where in known or [(None, "")]:
            yield {
                "text": aim.text,
                "bound": f"{aim.relation} {aim.bound:g}",
                "figure": MISSING if figure is None else f"{figure:.3g}",
                "where": where,
                "verdict": _verdict(aim, figure),
                "question": question.title,
                "anchor": anchor(question.title),
            }


def _where(question: Question, record: Record) -> str:
    """What was measured, of a question that is asked of several things, and the machine."""
    variant = lookup(record.figures, question.variant) if question.variant else None
    return f"{variant}; {record.machine}" if isinstance(variant, str) else record.machine


def _verdict(aim: Aim, figure: float | None) -> str:
    if figure is None:
        return MISSING
    return "met" if aim.is_met(figure) else "missed"


def anchor(title: str) -> str:
    """The name that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


if __name__ == "__main__":
    main()
