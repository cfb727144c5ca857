"""Groups of questions are asked in order, and one that fails stops no other."""

import re
import subprocess
from pathlib import Path

import pytest

from benchmarks import ask
from benchmarks.report.generate import GROUPS
from benchmarks.report.question import QUESTIONS

ROOT = Path(__file__).resolve().parents[2]


def test_every_group_has_a_target_and_questions() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for group in GROUPS:
        # What is installed for some of them may fail, by the line that begins with "-".
        recipe = rf"\n{group}: install\n(\t-\$\(INSTALL_PEERS\).*\n)?\t\$\(ASK\) {group}\n"
        assert re.search(recipe, makefile)
        assert ask.questions(group)
    assert {question.group for question in QUESTIONS} == {*GROUPS, ""}


def test_some_questions_can_be_chosen_and_unknown_ones_are_named() -> None:
    assert [q.name for q in ask.questions("bench", ["slopes", "scale"])] == ["scale", "slopes"]
    with pytest.raises(ValueError, match=r"nothing: choose from scale, slopes"):
        ask.questions("bench", ["nothing"])


def test_what_fails_is_named_and_the_others_are_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def run(command: list[str]) -> subprocess.CompletedProcess[str]:
        asked.append(command[2])
        return subprocess.CompletedProcess(command, returncode="slopes" in command[2])

    monkeypatch.setattr(ask.subprocess, "run", run)
    monkeypatch.setattr("sys.argv", ["ask", "bench", "--only", "scale,slopes,sse"])
    assert ask.main() == 1
    assert [re.sub(r".*bench_", "", module) for module in asked] == ["scale", "slopes", "sse"]
    assert "failed: python -m benchmarks.serving.bench_slopes" in capsys.readouterr().err
