"""The comparison with PEFT's mixed batches, in small."""

import sys
from collections.abc import Callable

import pytest

from benchmarks.report.record import Record
from benchmarks.serving import bench_adapter_mix


def test_both_sides_answer_every_load_in_turn(
    smoke_run: Callable[..., Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The development packages have PEFT too, as an oracle.
    monkeypatch.setenv("PEFT_PYTHON", sys.executable)
    figures = smoke_run(bench_adapter_mix.main, "--smoke").figures
    loads = {f"{what} x{at_once}" for what in ("base", "adapters") for at_once in (1, 8)}
    assert figures["tokens_per_second"].keys() == {
        f"{side} {load}" for side in ("ours", "peft") for load in loads
    }
    assert all(speed > 0 for speed in figures["tokens_per_second"].values())
    assert figures["peer_versions"]["peft"] == figures["versions"]["peft"]


def test_without_peft_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFT_PYTHON", "/nowhere/python")
    monkeypatch.setattr("sys.argv", ["bench_adapter_mix.py"])
    with pytest.raises(SystemExit, match="PEFT_PYTHON names nothing that is there"):
        bench_adapter_mix.main()
