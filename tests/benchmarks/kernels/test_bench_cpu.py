"""The benchmark of the CPU kernels runs every section on small shapes."""

import sys

import pytest
import torch

from benchmarks.kernels import bench_cpu
from multiflora.kernels.cpu_ops.core import load_core

pytestmark = pytest.mark.skipif(load_core() is None, reason="the core is not built here")


def test_a_smoke_run_measures_every_section_and_saves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_cpu", "--smoke"])
    monkeypatch.setattr(bench_cpu, "save", lambda *_: pytest.fail("a smoke run was saved"))
    bench_cpu.main()
    printed = capsys.readouterr().out
    assert printed.count("multiflora 1.0x") == len(bench_cpu.ROW_COUNTS)
    assert printed.count("x the time of their bytes") == len(bench_cpu.ADAPTER_COUNTS)
    assert "attention, 2 x 40" in printed


def test_shares_of_the_limits_follow_from_the_measured_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench_cpu, "best_seconds", lambda run, repeats: 1e-3)
    served = bench_cpu.Served(
        torch.float32,
        flops_per_second=2 * 64 * 128 * 1000 * 4,
        read_bytes_per_second=4608e3,
        repeats=1,
    )
    row = bench_cpu._matmul(64, 128, served)[0]
    assert (row["m"], row["of_peak"]) == (1, 0.25)
    # Half a byte per code, and a float32 scale per 64 of them.
    assert row["of_bandwidth"] == pytest.approx((64 * 128 / 2 + 64 * 128 / 16) / 4608, abs=1e-3)


def test_aims_are_held_to_the_worst_figure_of_their_kind() -> None:
    n, k = bench_cpu.SHAPES[-1]

    def row(n: int, k: int, m: int, *, share: float, ratio: float | None) -> dict[str, object]:
        ratios = {"bitsandbytes packed": ratio}
        return {"n": n, "k": k, "m": m, "of_peak": share, "of_bandwidth": share, "ratio": ratios}

    matmul = [
        row(64, 128, 1, share=0.1, ratio=1.7),
        row(64, 128, 8, share=0.7, ratio=1.6),
        row(64, 128, 64, share=0.9, ratio=None),
        row(n, k, 1, share=0.85, ratio=1.1),
        row(n, k, 8, share=0.2, ratio=1.1),
    ]
    lora = [{"adapters": count, "over_byte_time": count / 4} for count in (1, 8, 32)]
    assert bench_cpu._worst({"matmul": matmul, "lora": lora}) == {
        "cached_over_bitsandbytes": 1.6,
        "of_peak_from_8_rows": 0.7,
        "of_bandwidth_of_one_row": 0.85,
        "lora_over_byte_time": 2.0,
    }
