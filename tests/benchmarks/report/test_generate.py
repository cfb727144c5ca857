"""What docs and README say was measured is what the committed records say."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.report.generate import PAGE, anchor, pages, render
from benchmarks.report.plot import PICTURES, PLOTS, draw
from benchmarks.report.question import QUESTIONS, Aim
from benchmarks.report.record import ROOT, read_records
from benchmarks.report.template import fill_page

RECORDS = read_records()


def test_the_report_is_what_the_records_give() -> None:
    assert PAGE.read_text() == render(RECORDS), "make report writes it again"


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_figures_in_pages_are_those_of_their_records(path: Path) -> None:
    page = path.read_text()
    assert page == fill_page(page, RECORDS), "make report writes them again"


@pytest.mark.parametrize("path", [*pages(), PAGE], ids=lambda path: path.name)
def test_a_page_names_only_records_that_are_there(path: Path) -> None:
    for name in re.findall(r"benchmarks/results/[\w.-]+\.(?:json|png)", path.read_text()):
        assert (ROOT / name).exists(), f"{path.name} names {name}"


def test_every_picture_is_there_and_none_is_stale() -> None:
    named = re.findall(
        r"\]\((?:\.\./)?((?:images|benchmarks)/[^)]+\.(?:svg|png))", PAGE.read_text()
    )
    assert named
    for name in named:
        assert (PAGE.parent / name).exists() or (ROOT / name).exists(), name
    drawn = {Path(name).name for name in named if name.endswith(".svg")}
    assert drawn == {path.name for path in PICTURES.glob("*.svg")}
    assert sum(path.stat().st_size for path in PICTURES.glob("*.svg")) < 1 << 20


def test_links_to_questions_lead_somewhere() -> None:
    page = PAGE.read_text()
    headings = {anchor(line[3:]) for line in page.splitlines() if line.startswith("## ")}
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) <= headings


def test_a_figure_that_changes_changes_the_report() -> None:
    (mix,) = [record for record in RECORDS if record.name == "adapter-mix"][-1:]
    ratios = {**mix.figures["ratios"], "ours / peft, adapters x8": 123.4}
    changed = replace(mix, figures={**mix.figures, "ratios": ratios})
    page = render([changed if record is mix else record for record in RECORDS])
    assert "| ours / peft, adapters x8 | 123.40 |" in page
    assert page != PAGE.read_text()


def test_missed_aims_come_first_and_unmeasured_ones_say_so() -> None:
    table = PAGE.read_text().partition("## Aims")[2].partition("\n## ")[0]
    verdicts = re.findall(r"\| (\*\*missed\*\*|met|not measured) \|", table)
    order = {"**missed**": 0, "met": 1, "not measured": 2}
    assert verdicts == sorted(verdicts, key=lambda verdict: order[verdict])
    assert len(verdicts) >= sum(len(question.aims) for question in QUESTIONS)


def test_an_aim_says_of_what_and_where_it_was_measured() -> None:
    (mix,) = [record for record in RECORDS if record.name == "adapter-mix"][-1:]
    text, bound = "8 requests on 8 adapters, speed over PEFT's", "at least 8"
    figure = f"{mix.figures['ratios']['ours / peft, adapters x8']:.3g}"
    where = f"{mix.figures['model']}; {mix.machine}"
    assert f"| {text} | {bound} | {figure} | {where} |" in render(RECORDS)


def test_a_bound_is_kept_or_not() -> None:
    most = Aim("x", "a.b", "at most", 2)
    assert (most.is_met(2), most.is_met(2.1)) == (True, False)
    assert Aim("x", "a.b", "at least", 2).is_met(2.1)
    assert most.figure({"a": {"b": ["leak"]}}) == 1
    assert most.figure({"a": {}}) is None


@pytest.mark.parametrize("name", sorted(PLOTS))
def test_a_picture_is_drawn_of_its_record(name: str, tmp_path: Path) -> None:
    found = [record for record in RECORDS if record.name == name]
    if not found:
        pytest.skip(f"{name} was not measured yet")
    once = draw(found[-1], tmp_path).read_bytes()
    assert once.startswith(b"<?xml")
    assert draw(found[-1], tmp_path).read_bytes() == once
