"""The script for a machine with a GPU runs here in small; it measures nothing."""

import sys
from types import SimpleNamespace

import pytest

from benchmarks.training import bench_gpu_training
from benchmarks.training.bench_gpu_training import SCALES, _rows


@pytest.mark.parametrize("name", list(SCALES))
def test_rows_fill_micro_batches_to_the_token(name: str) -> None:
    scale = SCALES[name]
    lengths = [len(row.ids) for row in _rows(SimpleNamespace(**vars_of(scale), steps=2))]  # type: ignore[arg-type]
    assert sum(lengths) % scale.micro_batch_tokens == 0
    assert max(lengths) <= 2 * scale.longest_row


def vars_of(scale: object) -> dict[str, object]:
    names = ("shape", "micro_batch_tokens", "longest_row")
    return {name: getattr(scale, name) for name in names}


def test_a_tiny_run_has_every_section(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--device", "cpu", "--shape", "tiny", "--seconds", "0.5", "--tokens", "4"]
    monkeypatch.setattr(sys, "argv", ["bench_gpu_training", *flags])
    assert bench_gpu_training.main() == 0
    shown = capsys.readouterr().out
    for name in ("tokens_per_second", "quantum_ms", "inter_token_p99_over_alone", "training_kept"):
        assert f'"{name}"' in shown
