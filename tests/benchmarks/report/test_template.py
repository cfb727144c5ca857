"""Texts in pages are what their templates make of the records, or an error."""

from datetime import datetime
from pathlib import Path

import pytest

from benchmarks.report.record import ROOT, Record
from benchmarks.report.template import environment, fill_page

MACHINE = {"processor": "Abacus", "cores": 2, "vector_units": [], "accelerator": None}
RECORD = Record(
    path=Path(ROOT / "benchmarks" / "results" / "x-20260101-120000.json"),
    name="x",
    measured_at=datetime(2026, 1, 1, 12),
    figures={"machine": MACHINE, "speed": {"ours / theirs": 2.346}, "late": None},
)


def page(template: str, text: str = "old\n") -> str:
    return f"Before.\n\n<!-- figures\n{template}\n-->\n{text}<!-- end of figures -->\nAfter.\n"


def test_figures_are_filled_in_and_filling_again_changes_nothing() -> None:
    template = (
        '{% set r = newest("x") %}\n{{ r.speed["ours / theirs"] | fixed(1) }}: `{{ r.file }}`'
    )
    filled = fill_page(page(template), [RECORD])
    text = "2.3: `benchmarks/results/x-20260101-120000.json`\n"
    assert filled == page(template, text)
    assert fill_page(filled, [RECORD]) == filled


def test_two_texts_of_a_page_are_apart() -> None:
    one = page('{{ newest("x").machine_name }}')
    filled = fill_page(one + one, [RECORD])
    assert filled.count("-->\n2 cores of Abacus\n<!-- end") == 2


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ('{{ newest("x").sped }}', "sped"),
        ('{{ newest("y").speed }}', "no machine"),
        ("{{ 1 +", "unexpected"),
        ('{{ newest("x").speed | fixed(1) }}', "format"),
    ],
)
def test_a_figure_that_is_not_there_is_an_error(template: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        fill_page(page(template), [RECORD])


def test_a_text_without_an_end_is_an_error() -> None:
    with pytest.raises(ValueError, match="no '<!-- end of figures -->'"):
        fill_page(page("x").replace("<!-- end of figures -->", ""), [RECORD])


def test_what_is_none_was_not_measured() -> None:
    made = environment([RECORD])
    for text in ("fixed(1)", "percent", "count"):
        shown = made.from_string(f'{{{{ newest("x").late | {text} }}}}').render()
        assert shown == "not measured"
    assert made.from_string("{{ 0.256 | percent(1) }} {{ 12345.6 | count }}").render() == (
        "25.6% 12,346"
    )
