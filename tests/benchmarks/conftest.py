"""Makes the benchmarks importable: they are a folder of the repository and no installed package."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))

from benchmarks.report.generate import render
from benchmarks.report.record import ROOT, Record, read_record


@pytest.fixture
def smoke_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Record]:
    """``smoke_run(main, "--smoke")``: the record of a run, which the report can show."""

    def run(main: Callable[[], object], *arguments: str) -> Record:
        monkeypatch.setattr("benchmarks.harness.RESULTS", tmp_path / "results")
        # Tests that come later in this process compare bits, which threads can change.
        monkeypatch.setattr("torch.set_num_threads", lambda threads: None)
        monkeypatch.setattr("sys.argv", ["benchmark.py", *arguments])
        main()
        (path,) = (tmp_path / "results").glob("*.json")
        record = read_record(path)
        assert record.is_smoke
        shown = replace(
            record,
            name=record.name.removesuffix("-smoke"),
            path=ROOT / "benchmarks" / "results" / path.name,
            figures=json.loads(path.read_text()),
        )
        assert path.name in render([shown])
        return shown

    return run
