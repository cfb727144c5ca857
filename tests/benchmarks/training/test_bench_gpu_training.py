"""The script for a machine with a GPU runs here in small; it measures nothing."""

import sys
from dataclasses import replace

import pytest

from benchmarks.training import bench_gpu_training
from benchmarks.training.bench_gpu_training import MICRO_BATCHES_PER_STEP, SCALES, _rows


@pytest.mark.parametrize("name", list(SCALES))
def test_rows_fill_micro_batches_to_the_token(name: str) -> None:
    scale = replace(SCALES[name], steps=1)
    rows = list(_rows(scale))
    lengths = [len(row.ids) for row in rows]
    budget, per_batch = scale.micro_batch_tokens, len(rows) // MICRO_BATCHES_PER_STEP
    assert [sum(lengths[:per_batch]), sum(lengths[per_batch:])] == [budget, budget]
    assert max(lengths) <= 1.125 * scale.longest_row


def test_a_tiny_run_has_every_section(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--device", "cpu", "--shape", "tiny", "--seconds", "0.5", "--tokens", "4"]
    monkeypatch.setattr(sys, "argv", ["bench_gpu_training", *flags])
    assert bench_gpu_training.main() == 0
    shown = capsys.readouterr().out
    for name in ("tokens_per_second", "quantum_ms", "inter_token_p99_over_alone", "training_kept"):
        assert f'"{name}"' in shown
