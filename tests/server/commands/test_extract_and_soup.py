"""`multiflora extract` and `multiflora soup`, from the words to the folder."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from multiflora.server import cli

DEMO = "multiflora/demo-base"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run one command; returns exit code, stdout and stderr."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit:
            cli.main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return int(exit.value.code or 0), shown.out, shown.err

    return run


def test_export_and_extract_return_the_adapter(run: Run, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "lora"
    run("export", "--adapter", "shout", "--dtype", "float32", "--no-verify", "-o", model)
    code, shown, _ = run("extract", "--model", model, "--base", DEMO, "--rank", "exact", "-o", out)
    assert code == 0
    assert "28 that differ, of rank 4 to 4 (exact)" in shown
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 4


def test_extract_refuses_in_one_line(run: Run, tmp_path: Path) -> None:
    code, _, error = run("extract", "--model", DEMO, "--base", DEMO, "-o", tmp_path / "lora")
    assert code == 1
    assert error.startswith("multiflora: error: no linear of")
    code, _, error = run("extract", "--model", DEMO, "--base", DEMO, "--rank", "0", "-o", "x")
    assert code == 2
    assert "rank is 0; it must be at least 1" in error


def test_a_soup_of_one_checkpoint_twice_is_that_checkpoint(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "soup"
    code, shown, _ = run("soup", "shout", "shout", "--weights", "3", "1", "-o", out)
    assert code == 0
    assert "mean of 2 checkpoints" in shown
    assert "at least 100.0000%" in shown
    report = json.loads((out / "merge_report.json").read_text())
    assert [item["weight"] for item in report["checkpoints"]] == [0.75, 0.25]


def test_soup_refuses_in_one_line(run: Run, tmp_path: Path) -> None:
    code, _, error = run("soup", "shout", "json", "-o", tmp_path / "soup")
    assert code == 1
    assert "use merge for adapters of different runs" in error
    code, _, error = run("soup", "shout", "shout", "--weights", "1", "-o", tmp_path / "soup")
    assert code == 2
    assert "1 weights are given for 2 checkpoints" in error
