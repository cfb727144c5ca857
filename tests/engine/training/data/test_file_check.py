"""A file is checked beside the server, in bounded time and memory, whatever is in it."""

import threading
import time
from pathlib import Path

import pytest

from multiflora.engine.training.data import file_check
from multiflora.engine.training.data.file_check import CheckLimits, FileCheck, check_file
from multiflora.engine.training.data.problem import Problem


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"


def test_good_rows_are_counted(file: Path) -> None:
    file.write_text('{"text": "a"}\n\n{"text": "b"}\n')
    found = check_file(file)
    assert found == FileCheck(format="text", num_rows=2)
    assert found.complaint is None


def test_bad_rows_are_named(file: Path) -> None:
    file.write_text('{"text": "a"}\n' + '{"text": 1}\n' * 100)
    found = check_file(file)
    assert (found.num_rows, found.num_problems, len(found.problems)) == (1, 100, 50)
    assert found.problems[0] == Problem(2, "invalid_field", "text: a text was expected, not a int")
    assert found.complaint is not None
    assert found.complaint.startswith("line 2: text: a text was expected, not a int; line 3: ")
    assert found.complaint.endswith("(and 90 more)")


def test_a_file_without_rows_is_an_error(file: Path) -> None:
    file.touch()
    assert check_file(file).complaint == "the file has no rows"


def test_an_answer_is_never_too_long_to_be_read(file: Path) -> None:
    names = ", ".join(f'"{number}{"🙂" * 60}": 1' for number in range(9))
    row = "{" + names + "}\n"
    file.write_text(row * 200)
    found = check_file(file)
    assert (found.num_problems, len(found.problems)) == (200, 50)
    assert "🙂" * 29 in found.problems[49].message


def test_a_file_that_is_gone_is_a_failure(file: Path) -> None:
    assert "could not be read: No such file" in (check_file(file).complaint or "")


def test_a_row_that_bursts_memory_is_a_failure(file: Path) -> None:
    file.write_text('{"text": [' + "[]," * 4_000_000 + "[]]}\n")
    found = check_file(file, CheckLimits(memory_bytes=160 << 20))
    assert "memory" in (found.complaint or "")


@pytest.mark.parametrize(
    ("program", "limits", "words"),
    [
        ("import time; time.sleep(60)", CheckLimits(wall_seconds=1), "took over 1 s; split"),
        (
            "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 2))\nwhile True: pass",
            CheckLimits(cpu_seconds=1),
            "1 s of CPU time",
        ),
        ("import os; os.kill(os.getpid(), 9)", CheckLimits(), "ended with SIGKILL"),
        ("raise SystemExit(3)", CheckLimits(), "ended with exit status 3"),
        ("print('{')", CheckLimits(), "gave no answer"),
    ],
    ids=["hangs", "computes", "is killed", "fails", "babbles"],
)
def test_a_check_that_does_not_end_well_is_a_failure(
    file: Path, monkeypatch: pytest.MonkeyPatch, program: str, limits: CheckLimits, words: str
) -> None:
    monkeypatch.setattr(file_check, "_PROGRAM", program)
    assert words in (check_file(file, limits).complaint or "")


def test_a_check_that_is_not_wanted_any_more_ends_soon(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_check, "_PROGRAM", "import time; time.sleep(60)")
    cancelled = threading.Event()
    threading.Timer(0.3, cancelled.set).start()
    began = time.monotonic()
    with pytest.raises(InterruptedError):
        check_file(file, is_cancelled=cancelled.is_set)
    assert time.monotonic() - began < 10
