"""Records say where, when and how they were measured; the newest per machine counts."""

import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import RESULTS, save
from benchmarks.report import record as records
from benchmarks.report.question import QUESTIONS, Question
from benchmarks.report.record import (
    ROOT,
    lookup,
    newest,
    read_record,
    read_records,
    the_newest,
)

SECTIONS = ROOT / "benchmarks" / "report" / "sections"
MACHINE: dict[str, Any] = {
    "processor": "Abacus",
    "cores": 2,
    "vector_units": ["avx512_bf16"],
    "memory_gib": 1.0,
    "accelerator": None,
    "load_average_at_end": 0.5,
}


def write(folder: Path, name: str, time: str, **figures: Any) -> Path:
    path = folder / f"{name}-20260101-{time}.json"
    facts = {
        "benchmark": name,
        "command": f"python -m benchmarks.{name}",
        "commit": "abc",
        "machine": MACHINE,
        "versions": {"python": "3.11"},
    }
    path.write_text(json.dumps({**facts, **figures}))
    return path


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_committed_record_can_be_repeated(path: Path) -> None:
    found = read_record(path)
    assert not found.is_smoke, "a smoke run measures nothing"
    module = re.match(r"python -m ([\w.]+)", found.figures["command"])
    assert module is not None
    assert (ROOT / Path(*module[1].split("."))).with_suffix(".py").exists()
    assert re.fullmatch(r"[0-9a-f]{7,40}(-dirty)?", found.figures["commit"])


def test_every_record_answers_a_question() -> None:
    # Clients pass or fail; docs/clients.md says which.
    patterns = ("clients", *(question.pattern for question in QUESTIONS))
    for found in read_records():
        assert any(fnmatch(found.name, pattern) for pattern in patterns), found.name


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.name)
def test_a_question_names_a_script_and_has_a_table(question: Question) -> None:
    module = re.match(r"python -m ([\w.]+)", question.command)
    assert module is not None
    assert (ROOT / Path(*module[1].split("."))).with_suffix(".py").exists()
    assert (SECTIONS / f"{question.name}.md.jinja").exists()


def test_what_the_harness_saves_is_a_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("benchmarks.harness.RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.harness.commit", lambda: "abcdef0")
    monkeypatch.setattr("sys.argv", ["bench_x.py", "--notes", "two words"])
    found = read_record(save("x", {"speed": 1.5}))
    assert found.figures["speed"] == 1.5
    assert found.figures["command"].endswith("--notes 'two words'")


@pytest.mark.parametrize(
    ("change", "lacks"),
    [
        ({"commit": ""}, "lacks commit"),
        ({"machine": {"cores": 2}}, "lacks machine.processor"),
        ({"versions": {"torch": "2"}}, "lacks versions.python"),
        ({"benchmark": "y"}, "a record of y"),
    ],
)
def test_a_record_that_cannot_be_repeated_is_refused(
    tmp_path: Path, change: dict[str, Any], lacks: str
) -> None:
    with pytest.raises(ValueError, match=lacks):
        read_record(write(tmp_path, "x", "120000", **change))


def test_the_newest_counts_per_machine_and_variant(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(records, "ROOT", tmp_path)
    other = {**MACHINE, "accelerator": "H100"}
    write(tmp_path, "x", "120000", speed=1, arguments={"task": "A"})
    write(tmp_path, "x", "130000", speed=2, arguments={"task": "a"})
    write(tmp_path, "x", "110000", speed=3, arguments={"task": "b"})
    write(tmp_path, "x", "100000", speed=4, arguments={"task": "a"}, machine=other)
    write(tmp_path, "x", "140000", speed=5, arguments={"task": "a", "smoke": True})
    found = read_records(tmp_path)

    speeds = [one.figures["speed"] for one in newest(found, "x", "arguments.task")]
    assert sorted(speeds) == [2, 3, 4]
    assert the_newest(found, "x", machine="H100").figures["speed"] == 4
    assert the_newest(found, "x", machine=None).figures["speed"] == 2
    here = "2 cores of Abacus, AVX512-BF16"
    assert the_newest(found, "x", task="b").machine == here
    with pytest.raises(LookupError, match=f"{here} and {here}, H100; name one"):
        the_newest(found, "x")
    with pytest.raises(LookupError, match="no machine"):
        the_newest(found, "y")


def test_a_path_leads_through_mappings_and_to_the_first_entry_that_fits() -> None:
    figures = {"a": {"b": 1}, "cells": [{"x": 1, "y.z": 2}, {"x": 3, "y.z": 4}, {"x": 3}]}
    assert lookup(figures, "a.b") == 1
    assert lookup(figures, ("cells", {"x": 3}, "y.z")) == 4
    for absent in ("a.c", "cells.x", ("cells", {"x": 2}, "y.z"), ("a", {"x": 3}), ("b", {})):
        assert lookup(figures, absent) is None
